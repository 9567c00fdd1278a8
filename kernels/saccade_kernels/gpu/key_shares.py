"""Triton shares of keys in rows of saliency: one program a row and split of its keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import layer_gradients as plain

SPLIT = 256
"""Keys of a program."""
WARPS = 4
UNSPECIALISED = ("losses", "heads", "width", "window", "stride")


@triton.jit(
    do_not_specialize=UNSPECIALISED,
    do_not_specialize_on_alignment=["context_lens", "start", "end"],
)
def share_kernel(
    saliency,
    context_lens,
    start,
    end,
    output,
    losses,
    heads,
    width,
    window,
    stride,
    SPLIT: tl.constexpr,
):
    """Both sums of one split. Grid (n * losses, splits); rows of saliency are ``stride`` apart."""
    line = tl.program_id(0)
    row = line // losses
    split = tl.program_id(1)
    context = tl.load(context_lens + row)
    low = 0
    if window > 0:
        low = tl.maximum(context - window, 0)
    at = split * SPLIT + tl.arange(0, SPLIT)
    seen = (at >= low) & (at < context) & (at < width)
    first = line.to(tl.int64) * heads * stride + at
    total = tl.zeros([SPLIT], tl.float32)
    for head in range(heads):
        total += tl.load(saliency + first + head * stride, mask=seen, other=0.0)
    total = total / heads
    inside = (at >= tl.load(start + row)) & (at < tl.load(end + row))
    to = output + (line.to(tl.int64) * tl.num_programs(1) + split) * 2
    tl.store(to, tl.sum(total * total, 0))
    tl.store(to + 1, tl.sum(tl.where(inside, total, 0.0), 0))


def key_shares(
    saliency: torch.Tensor,
    context_lens: torch.Tensor,
    window: int,
    start: torch.Tensor,
    end: torch.Tensor,
) -> torch.Tensor:
    """:func:`saccade_kernels.layer_gradients.key_shares` in Triton; float64 in PyTorch."""
    if saliency.dtype == torch.float64:
        return plain.key_shares(saliency, context_lens, window, start, end)
    count, losses, heads, width = saliency.shape
    splits = max(-(-width // SPLIT), 1)
    assert saliency.stride(3) == 1, "keys lie one behind another"
    assert saliency.stride()[:2] == (
        losses * heads * saliency.stride(2),
        heads * saliency.stride(2),
    )
    output = saliency.new_empty((count, losses, splits, 2))
    if count * losses:
        share_kernel[(count * losses, splits)](
            saliency,
            context_lens,
            start,
            end,
            output,
            losses,
            heads,
            width,
            window,
            saliency.stride(2),
            SPLIT=SPLIT,
            num_warps=WARPS,
        )
    return output
