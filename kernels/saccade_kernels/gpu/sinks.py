"""Triton sink detection: one launch a layer that scores a step's rows, one that settles tags."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import controls, sinks
from saccade_kernels.gpu.tuning import small_config
from saccade_kernels.sinks import SinkTags

WIDTH = tl.constexpr(controls.CLASSES)
EPSILON = tl.constexpr(sinks.RMS_EPSILON)

TAG_BLOCK = 1024
TAG_WARPS = 4


@triton.jit(
    do_not_specialize=["count"], do_not_specialize_on_alignment=["rows", "dims", "slots", "scores"]
)
def score_kernel(hidden, rows, dims, slots, scores, count, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Score of one row, by ``count`` dimensions. Grid (rows)."""
    index = tl.program_id(0)
    row = hidden + tl.load(rows + index) * SIZE
    at = tl.arange(0, BLOCK)
    x = tl.load(row + at, mask=at < SIZE, other=0.0).to(tl.float32)
    largest = 0.0
    for place in range(count):
        value = tl.load(row + tl.load(dims + place)).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(value), propagate_nan=tl.PropagateNan.ALL)
    rms = tl.sqrt(tl.sum(x * x, 0) / SIZE + EPSILON)
    tl.store(scores + tl.load(slots + index), largest / rms)


TABLES = ["scores", "slots", "position", "starts", "base", "threshold", "tag_row", "remap"]
TABLES += ["require", "whole", "table", "met"]


@triton.jit(do_not_specialize=["stride"], do_not_specialize_on_alignment=TABLES)
def settle_kernel(
    scores,
    slots,
    position,
    starts,
    base,
    threshold,
    tag_row,
    remap,
    require,
    whole,
    table,
    met,
    stride,
    BLOCK: tl.constexpr,
):
    """BLOCK positions of one sequence; rows of ``table`` are ``stride`` apart.

    Each program decides for itself whether the requirement is met. Grid (sequences, blocks).
    """
    sequence = tl.program_id(0)
    first, end = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    own = first + tl.program_id(1) * BLOCK
    row = tl.load(tag_row + sequence)
    least = tl.load(threshold + sequence)
    needed = tl.load(require + sequence)
    rules = remap + sequence * WIDTH
    is_met = (tl.load(met + row) > 0).to(tl.int32)
    if tl.load(whole + sequence) > 0:
        is_met = (needed < 0).to(tl.int32)
        if (needed >= 0) & (own <= end):
            for begin in range(first, end, BLOCK):
                at = begin + tl.arange(0, BLOCK)
                tag, _ = tags_of(scores, slots, base, rules, at, end, least)
                has = (tag == needed) & (at < end)
                is_met = tl.maximum(is_met, tl.max(has.to(tl.int32), 0))
    if tl.program_id(1) == 0:
        tl.store(met + row, is_met.to(tl.uint8))
    at = own + tl.arange(0, BLOCK)
    tag, unchanged = tags_of(scores, slots, base, rules, at, end, least)
    tag = tl.where(is_met > 0, tag, unchanged)
    where = tl.load(position + at, mask=at < end, other=0)
    tl.store(table + row * stride + where, tag.to(tl.uint8), mask=at < end)


@triton.jit
def tags_of(scores, slots, base, rules, at, end, least):
    """Classes of positions by their scores, and without them."""
    inside = at < end
    score = tl.load(scores + tl.load(slots + at, mask=inside, other=0), mask=inside, other=0.0)
    tag = tl.load(base + at, mask=inside, other=0)
    return tl.where(score >= least, tl.load(rules + tag, mask=inside, other=0), tag), tag


def store_sink_scores(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    dims: torch.Tensor,
    slots: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """:func:`saccade_kernels.sinks.store_scores` in Triton; float64 in PyTorch."""
    if hidden.dtype == torch.float64:
        sinks.store_scores(hidden, rows, dims, slots, scores)
        return
    hidden = hidden.contiguous()
    size = hidden.shape[1]
    block = int(triton.next_power_of_2(size))
    if count := rows.shape[0]:
        score_kernel[(count,)](
            hidden,
            rows,
            dims,
            slots,
            scores,
            dims.shape[0],
            SIZE=size,
            BLOCK=block,
            num_warps=small_config("norm", hidden.dtype).warps(block),
        )


def settle_sink_tags(
    tags: SinkTags, scores: torch.Tensor, table: torch.Tensor, met: torch.Tensor
) -> None:
    """:func:`saccade_kernels.sinks.settle_tags` in Triton."""
    blocks = max(triton.cdiv(tags.base.shape[0], TAG_BLOCK), 1)
    settle_kernel[(tags.whole.shape[0], blocks)](
        scores,
        tags.slots,
        tags.position,
        tags.starts,
        tags.base,
        tags.threshold,
        tags.tag_row,
        tags.remap,
        tags.require,
        tags.whole,
        table,
        met,
        table.stride(0),
        BLOCK=TAG_BLOCK,
        num_warps=TAG_WARPS,
    )
