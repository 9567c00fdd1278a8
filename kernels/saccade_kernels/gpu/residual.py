"""Triton residual edits: one program a row of a site, which leaves memory once and returns once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import residual
from saccade_kernels.residual_tables import ResidualTables

EDITS = tl.constexpr(residual.RESIDUAL_EDITS)
SIGNED = tl.constexpr(residual.ResidualFlag.SIGNED.value)
RELATIVE = tl.constexpr(residual.ResidualFlag.RELATIVE.value)
KEEP_NORM = tl.constexpr(residual.ResidualFlag.KEEP_NORM.value)
JOINED = tl.constexpr(residual.ResidualFlag.JOINED.value)
DIAGONAL = tl.constexpr(residual.ResidualFlag.DIAGONAL.value)
NUMBERS = tl.constexpr(6)

UNSPECIALISED = ("site", "sites")


@triton.jit(do_not_specialize=UNSPECIALISED)
def residual_kernel(
    hidden,
    output,
    rows,
    bank,
    count,
    reads,
    writes,
    numbers,
    flags,
    site,
    sites,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All edits of one row, in float32. Grid (tokens)."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    h = tl.load(hidden + token * D + at, mask=inside, other=0.0).to(tl.float32)
    cell = tl.load(rows + token).to(tl.int64) * sites + site
    base, squares = h, 0.0  # what joined edits read, and its squares' sum
    for place in range(tl.load(count + cell)):
        edit = cell * EDITS + place
        h, base, squares = edited(
            h, base, squares, bank, reads, writes, numbers, flags, edit, at, inside, D
        )
    tl.store(output + token * D + at, h.to(output.dtype.element_ty), mask=inside)


@triton.jit
def edited(
    h, base, squares, bank, reads, writes, numbers, flags, edit, at, inside, D: tl.constexpr
):
    """A row behind one more edit, what it has read, and the sum of squares of that."""
    flag = tl.load(flags + edit)
    if (flag & JOINED) == 0:
        base = h
        squares = tl.sum(h * h, 0)
    read = tl.load(reads + edit)
    vector = tl.load(bank + read.to(tl.int64) * D + at, mask=inside, other=0.0)
    numbers_of = numbers + edit * NUMBERS
    rms = tl.where((flag & RELATIVE) != 0, tl.sqrt(squares / D), 1.0)
    if (flag & DIAGONAL) != 0:
        h += moved(base, numbers_of, flag, rms) * vector
    else:
        delta = moved(tl.sum(base * vector, 0), numbers_of, flag, rms)
        write = tl.load(writes + edit)
        if write != read:
            vector = tl.load(bank + write.to(tl.int64) * D + at, mask=inside, other=0.0)
        h += delta * vector
    if (flag & KEEP_NORM) != 0:
        h *= regain(squares, tl.sum(h * h, 0))
    return h, base, squares


@triton.jit
def moved(p, numbers, flag, rms):
    """p' - p of one coordinate or of all; ``numbers`` points to those of the edit."""
    scale, shift = tl.load(numbers), tl.load(numbers + 1)
    low, high = tl.load(numbers + 2), tl.load(numbers + 3)
    size = tl.where((flag & SIGNED) != 0, tl.where(p > 0, 1.0, tl.where(p < 0, -1.0, 0.0)), 1.0)
    delta = (scale - 1) * p + shift * (size * rms)
    delta = tl.maximum(delta, low - p, propagate_nan=tl.PropagateNan.ALL)
    delta = tl.minimum(delta, high - p, propagate_nan=tl.PropagateNan.ALL)
    acts = (p >= tl.load(numbers + 4)) & (p <= tl.load(numbers + 5))
    return tl.where(acts, delta, 0.0)


@triton.jit
def regain(before, after):
    """The factor between two norms, given their squares; a fast division may miss x / x = 1."""
    other = (after > 0) & (after != before)
    return tl.where(other, tl.sqrt(before) / tl.sqrt(tl.where(other, after, 1.0)), 1.0)


def warps_of(hidden_size: int) -> int:
    """Warps of a program: at most 16 values of a row a thread, up to 8192."""
    block = int(triton.next_power_of_2(hidden_size))
    return min(max(block // 256, 1), 16)


def edit_residual(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    tables: ResidualTables,
    site: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`saccade_kernels.residual_tables.edit_residual` in Triton."""
    hidden = hidden.contiguous()
    output = hidden.new_empty(hidden.shape) if out is None else out
    assert output.is_contiguous(), "rows lie one behind another"
    tokens, dim = hidden.shape
    if tokens:
        residual_kernel[(tokens,)](
            hidden,
            output,
            rows,
            tables.bank,
            tables.count,
            tables.reads,
            tables.writes,
            tables.numbers,
            tables.flags,
            site,
            tables.count.shape[1],
            D=dim,
            BLOCK=triton.next_power_of_2(dim),
            num_warps=warps_of(dim),
        )
    return output
