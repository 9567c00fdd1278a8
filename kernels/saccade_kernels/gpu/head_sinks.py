"""Triton sinks of single heads: what keys got is summed, judged and written in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import controls
from saccade_kernels.head_sinks import HeadSinkCriterion, SumsSoFar

SINK = tl.constexpr(controls.SINK_CLASS)
EXEMPT = tl.constexpr(controls.EXEMPT_CLASS)

KEY_BLOCK = 1024
KEY_WARPS = 4

UNSPECIALISED = ["end", "width", "room", "max_len", "counts", "least_rows"]


@triton.jit(
    do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=["weights", "heads", "table"]
)
def head_sink_kernel(
    weights,
    heads,
    sums,
    table,
    threshold,
    end,
    width,
    room,
    max_len,
    counts,
    least_rows,
    SUMMED: tl.constexpr,
    FIRST_FOUND: tl.constexpr,
    SPARE_INITIAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The keys of one head. Rows are width (weights), room (sums), max_len (table) apart.

    Grid (heads that count).
    """
    index = tl.program_id(0)
    head = tl.load(heads + index).to(tl.int64)
    before = 0  # sinks found in the blocks before
    for begin in range(0, end, BLOCK):
        key = begin + tl.arange(0, BLOCK)
        inside = key < end
        score = tl.load(weights + head * width + key, mask=inside, other=0.0)
        found = inside
        if SUMMED:
            at = sums + index.to(tl.int64) * room + key
            so_far = tl.load(at, mask=inside, other=0.0)
            if counts > 0:
                so_far += score
                tl.store(at, so_far, mask=inside)
            rows = tl.where(inside, end - key, 1)  # that can see the key
            score = tl.div_rn(so_far, rows.to(tl.float32))
            found = found & (rows >= least_rows)
        found = (found & (score > threshold)).to(tl.int32)
        if FIRST_FOUND:
            spared = tl.cumsum(found, 0) + before <= 1
            before += tl.sum(found, 0)
        else:
            spared = key == 0
        tag = tl.where(spared, 0, found * SINK)
        if SPARE_INITIAL:
            tag = tl.where(key == 0, EXEMPT, tag)
        tl.store(table + head * max_len + key, tag.to(tl.uint8), mask=inside)


def settle_head_sinks(
    weights: torch.Tensor,
    heads: torch.Tensor,
    end: int,
    criterion: HeadSinkCriterion,
    sums: SumsSoFar | None,
    table: torch.Tensor,
) -> None:
    """:func:`saccade_kernels.head_sinks.settle_classes` in Triton; float32."""
    assert weights.stride(1) == table.stride(1) == 1
    head_sink_kernel[(heads.shape[0],)](
        weights,
        heads,
        None if sums is None else sums.values,
        table,
        criterion.threshold_among(end),
        end,
        weights.stride(0),
        0 if sums is None else sums.values.stride(0),
        table.stride(0),
        0 if sums is None else int(sums.counts),
        0 if sums is None else sums.least_rows,
        SUMMED=sums is not None,
        FIRST_FOUND=criterion.first_found,
        SPARE_INITIAL=criterion.exempt_initial,
        BLOCK=KEY_BLOCK,
        num_warps=KEY_WARPS,
    )
