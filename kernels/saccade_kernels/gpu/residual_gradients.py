"""Triton gradients of residual edits: one program a gradient's row and site.

Edits are gone back through in reverse. What each has read is computed anew from what the first one
read, so nothing between them is stored: few rows have more than one or two edits at a site.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import layer_gradients as plain
from saccade_kernels.gpu.layer_gradients import place_of
from saccade_kernels.gpu.residual import (
    DIAGONAL,
    EDITS,
    JOINED,
    KEEP_NORM,
    NUMBERS,
    RELATIVE,
    SIGNED,
    edited,
    moved,
)
from saccade_kernels.residual_tables import ResidualTables

UNSPECIALISED = ("losses", "site", "sites")


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=["rows", "programs"])
def residual_gradient_kernel(
    grad,
    hidden,
    rows,
    programs,
    output,
    bank,
    count,
    reads,
    writes,
    numbers,
    flags,
    losses,
    site,
    sites,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of a gradient, in float32. Grid (rows of it)."""
    place = place_of(rows, losses)
    row = tl.program_id(0).to(tl.int64) * D
    at = tl.arange(0, BLOCK)
    inside = at < D
    first = tl.load(hidden + place * D + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + row + at, mask=inside, other=0.0).to(tl.float32)
    cell = tl.load(programs + tl.program_id(0) // losses).to(tl.int64) * sites + site
    joint = tl.zeros([BLOCK], tl.float32)  # of what joined edits read
    edits = tl.load(count + cell)
    for left in range(edits):
        last = edits - 1 - left
        h, base, squares = first, first, 0.0
        for before in range(last):
            edit = cell * EDITS + before
            h, base, squares = edited(
                h, base, squares, bank, reads, writes, numbers, flags, edit, at, inside, D
            )
        edit = cell * EDITS + last
        flag = tl.load(flags + edit)
        if (flag & JOINED) == 0:
            base = h
        squares = tl.sum(base * base, 0)
        rms = tl.where((flag & RELATIVE) != 0, tl.sqrt(squares / D), 1.0)
        numbers_of = numbers + edit * NUMBERS
        read, write = tl.load(reads + edit), tl.load(writes + edit)
        vector = tl.load(bank + read.to(tl.int64) * D + at, mask=inside, other=0.0)
        other = tl.load(
            bank + write.to(tl.int64) * D + at, mask=inside & ((flag & DIAGONAL) == 0), other=0.0
        )
        p = tl.sum(base * vector, 0)
        if (flag & KEEP_NORM) != 0:
            if (flag & DIAGONAL) != 0:
                t = h + moved(base, numbers_of, flag, rms) * vector
            else:
                t = h + moved(p, numbers_of, flag, rms) * other
            after = tl.sum(t * t, 0)
            there = (after > 0) & (squares > 0)
            after = tl.where(there, after, 1.0)
            size = tl.where(there, tl.sqrt(squares / after), 1.0)
            along = tl.where(there, tl.sum(g * t, 0) * size, 0.0)
            joint += along / tl.where(there, squares, 1.0) * base
            g = g * size - along / after * t
        if (flag & DIAGONAL) != 0:
            each_p, each_rms = slopes(base, numbers_of, flag, rms)
            joint += g * vector * each_p
            rms_grad = tl.sum(g * vector * each_rms, 0)
        else:
            by_p, by_rms = slopes(p, numbers_of, flag, rms)
            change = tl.sum(g * other, 0)
            joint += change * by_p * vector
            rms_grad = change * by_rms
        if (flag & RELATIVE) != 0:
            joint += rms_grad / (D * tl.where(rms > 0, rms, 1.0)) * base
        if (flag & JOINED) == 0:
            g += joint
            joint = tl.zeros([BLOCK], tl.float32)
    tl.store(output + row + at, g.to(output.dtype.element_ty), mask=inside)


@triton.jit
def slopes(p, numbers, flag, rms):
    """Derivatives of p' - p, of one coordinate or of all, by p and by the RMS."""
    scale, shift = tl.load(numbers), tl.load(numbers + 1)
    low, high = tl.load(numbers + 2) - p, tl.load(numbers + 3) - p
    sign = tl.where((flag & SIGNED) != 0, tl.where(p > 0, 1.0, tl.where(p < 0, -1.0, 0.0)), 1.0)
    free = (scale - 1) * p + shift * (sign * rms)
    acts = (p >= tl.load(numbers + 4)) & (p <= tl.load(numbers + 5))
    is_free = (free >= low) & (free <= high)
    by_p = tl.where(is_free, scale - 1, -1.0)
    by_rms = tl.where(is_free, shift * sign, 0.0)
    return tl.where(acts, by_p, 0.0), tl.where(acts, by_rms, 0.0)


def gradient_warps(hidden_size: int) -> int:
    """Warps of a program, which holds several rows: at most 8 values of each a thread."""
    return min(max(int(triton.next_power_of_2(hidden_size)) // 256, 1), 16)


def residual_gradient(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    programs: torch.Tensor,
    tables: ResidualTables,
    site: int,
) -> torch.Tensor:
    """:func:`saccade_kernels.layer_gradients.residual_gradient` in Triton; float64 in PyTorch."""
    if grad.dtype == torch.float64:
        return plain.residual_gradient(grad, hidden, rows, programs, tables, site)
    count, dim = grad.shape
    output = grad.new_empty(grad.shape)
    if count:
        residual_gradient_kernel[(count,)](
            grad.contiguous(),
            hidden.contiguous(),
            rows,
            programs,
            output,
            tables.bank,
            tables.count,
            tables.reads,
            tables.writes,
            tables.numbers,
            tables.flags,
            count // len(rows),
            site,
            tables.count.shape[1],
            D=dim,
            BLOCK=triton.next_power_of_2(dim),
            num_warps=gradient_warps(dim),
        )
    return output
