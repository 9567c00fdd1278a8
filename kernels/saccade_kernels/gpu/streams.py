"""Triton stream edits: one program a residual row, which leaves memory once and returns once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import streams
from saccade_kernels.stream_tables import StreamTables

EDITS = tl.constexpr(streams.STREAM_EDITS)
SIGNED = tl.constexpr(streams.StreamFlag.SIGNED.value)
RELATIVE = tl.constexpr(streams.StreamFlag.RELATIVE.value)
KEEP_NORM = tl.constexpr(streams.StreamFlag.KEEP_NORM.value)

UNSPECIALISED = ("layer", "residuals")


@triton.jit(do_not_specialize=UNSPECIALISED)
def stream_kernel(
    hidden,
    output,
    rows,
    bank,
    count,
    vector,
    numbers,
    flags,
    layer,
    residuals,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All edits of one row, in float32. Grid (tokens)."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    h = tl.load(hidden + token * D + at, mask=inside, other=0.0).to(tl.float32)
    site = tl.load(rows + token).to(tl.int64) * residuals + layer
    for place in range(tl.load(count + site)):
        edit = site * EDITS + place
        slot = tl.load(vector + edit).to(tl.int64)
        v = tl.load(bank + slot * D + at, mask=inside, other=0.0)
        h = change(h, v, numbers + edit * 4, tl.load(flags + edit), D)
    tl.store(output + token * D + at, h.to(output.dtype.element_ty), mask=inside)


@triton.jit
def change(h, v, numbers, flag, D: tl.constexpr):
    """One edit; ``numbers`` points to scale, shift, low and high."""
    scale, shift = tl.load(numbers), tl.load(numbers + 1)
    low, high = tl.load(numbers + 2), tl.load(numbers + 3)
    p = tl.sum(h * v, 0)
    squares = tl.sum(h * h, 0)
    size = tl.where((flag & SIGNED) != 0, tl.where(p > 0, 1.0, tl.where(p < 0, -1.0, 0.0)), 1.0)
    size = tl.where((flag & RELATIVE) != 0, size * tl.sqrt(squares / D), size)
    delta = (scale - 1) * p + shift * size
    delta = tl.maximum(delta, low - p, propagate_nan=tl.PropagateNan.ALL)
    delta = tl.minimum(delta, high - p, propagate_nan=tl.PropagateNan.ALL)
    changed = h + delta * v
    after = tl.sum(changed * changed, 0)
    # A fast division may miss x / x = 1.
    keeps = ((flag & KEEP_NORM) != 0) & (after > 0) & (after != squares)
    factor = tl.where(keeps, tl.sqrt(squares) / tl.sqrt(tl.where(keeps, after, 1.0)), 1.0)
    return changed * factor


def warps_of(hidden_size: int) -> int:
    """Warps of a program: at most 32 values of a row a thread."""
    block = int(triton.next_power_of_2(hidden_size))
    return min(max(block // 512, 1), 8)


def stream(
    hidden: torch.Tensor, rows: torch.Tensor, tables: StreamTables, layer: int
) -> torch.Tensor:
    """:func:`saccade_kernels.stream_tables.stream` in Triton."""
    hidden = hidden.contiguous()
    output = hidden.new_empty(hidden.shape)
    tokens, dim = hidden.shape
    if tokens:
        stream_kernel[(tokens,)](
            hidden,
            output,
            rows,
            tables.bank,
            tables.count,
            tables.vector,
            tables.numbers,
            tables.flags,
            layer,
            tables.count.shape[1],
            D=dim,
            BLOCK=triton.next_power_of_2(dim),
            num_warps=warps_of(dim),
        )
    return output
