"""Triton contrast of distributions: whole vocabularies are read twice and written once.

A row is divided among :data:`PARTS` programs. First each finds the highest logit of its part and
the sum of exponentials; whoever reads the row afterwards puts the parts together. A mask is applied
without reading logits: bits are read, and written is what they take away.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import distributions

PARTS = 32
BLOCK = 1024
WARPS = 4

LOWEST = tl.constexpr(-3.0e38)
"""Stands for -inf where a difference of two is taken."""

LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def parts_kernel(
    logits, rows, highest, sums, WIDTH: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """The highest value of a part of a row, and the sum of exponentials. Grid (n, PARTS)."""
    number, part = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + number)
    start, end = bounds(part, WIDTH, PARTS)
    most, total = tl.full((), LOWEST, tl.float32), tl.full((), 0.0, tl.float32)
    for first in range(start, end, BLOCK):
        x = values(logits, row, first, end, float("-inf"), WIDTH, BLOCK)
        higher = tl.maximum(most, tl.max(x, 0))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(x - higher), 0)
        most = higher
    tl.store(highest + number * PARTS + part, most)
    tl.store(sums + number * PARTS + part, total)


@triton.jit
def contrast_kernel(
    logits,
    own,
    own_highest,
    own_sums,
    others,
    other,
    other_highest,
    other_sums,
    numbers,
    output,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """own log p - other log q of a part of a row, -inf where it is excluded. Grid (n, PARTS)."""
    number, part = tl.program_id(0), tl.program_id(1)
    most, log_sum = normaliser(own_highest, own_sums, number, PARTS)
    other_most, other_log_sum = normaliser(other_highest, other_sums, number, PARTS)
    own_weight = tl.load(numbers + number * 3).to(tl.float32)
    other_weight = tl.load(numbers + number * 3 + 1).to(tl.float32)
    cutoff = tl.load(numbers + number * 3 + 2).to(tl.float32)
    p, q = tl.load(own + number), tl.load(other + number)
    start, end = bounds(part, WIDTH, PARTS)
    for first in range(start, end, BLOCK):
        log_p = values(logits, p, first, end, 0.0, WIDTH, BLOCK) - most - log_sum
        log_q = values(others, q, first, end, 0.0, WIDTH, BLOCK) - other_most - other_log_sum
        excluded = (log_p < cutoff - log_sum) | (log_p == float("-inf"))
        d = tl.where(excluded, float("-inf"), own_weight * log_p - other_weight * log_q)
        at = first + tl.arange(0, BLOCK)
        tl.store(output + number.to(tl.int64) * WIDTH + at, d, mask=at < end)


@triton.jit
def divergence_kernel(
    logits,
    own,
    own_highest,
    own_sums,
    others,
    owners,
    other_highest,
    other_sums,
    is_jsd,
    sums,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A part of how far a row is from its owner's, summed. Grid (m, PARTS)."""
    number, part = tl.program_id(0), tl.program_id(1)
    owner = tl.load(owners + number)
    most, log_sum = normaliser(own_highest, own_sums, owner, PARTS)
    other_most, other_log_sum = normaliser(other_highest, other_sums, number, PARTS)
    jsd = tl.load(is_jsd + number) != 0
    p = tl.load(own + owner)
    start, end = bounds(part, WIDTH, PARTS)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(start, end, BLOCK):
        log_p = values(logits, p, first, end, 0.0, WIDTH, BLOCK) - most - log_sum
        log_q = values(others, number.to(tl.int64), first, end, 0.0, WIDTH, BLOCK)
        log_q = log_q - other_most - other_log_sum
        log_m = tl.maximum(log_p, log_q) + tl.log(1.0 + tl.exp(-tl.abs(log_p - log_q))) - LOG_2
        if jsd:
            terms = tl.exp(log_p) * (log_p - log_m) + tl.exp(log_q) * (log_q - log_m)
        else:
            terms = tl.exp(log_m) * (2.0 * log_m - log_p - log_q)
        total += tl.where(first + tl.arange(0, BLOCK) < end, terms, 0.0)
    tl.store(sums + number * PARTS + part, tl.sum(total, 0) / (2 * WIDTH))


@triton.jit
def mask_kernel(
    logits,
    rows,
    allowed,
    which,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """-inf for the tokens of a part of a row whose bits are 0. Grid (n, PARTS)."""
    WORDS: tl.constexpr = (WIDTH + 31) // 32
    number, part = tl.program_id(0), tl.program_id(1)
    row, mask = tl.load(rows + number), tl.load(which + number)
    start, end = bounds(part, WIDTH, PARTS)
    for first in range(start, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        word = tl.load(allowed + mask * WORDS + at // 32, mask=at < end, other=-1)
        banned = ((word >> (at % 32)) & 1) == 0
        nothing = tl.full((BLOCK,), float("-inf"), tl.float32)
        tl.store(logits + row * WIDTH + at, nothing, mask=banned & (at < end))


@triton.jit
def bounds(part, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """Where a part of a row begins, and where it ends. Parts are whole vectors of any dtype."""
    SIZE: tl.constexpr = (WIDTH + 16 * PARTS - 1) // (16 * PARTS) * 16
    return part * SIZE, tl.minimum((part + 1) * SIZE, WIDTH)


@triton.jit
def values(logits, row, first, end, behind, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Logits of a row from ``first`` on, in float32; ``behind`` the end of the part."""
    at = first + tl.arange(0, BLOCK)
    return tl.load(logits + row * WIDTH + at, mask=at < end, other=behind).to(tl.float32)


@triton.jit
def normaliser(highest, sums, number, PARTS: tl.constexpr):
    """The highest value of a row, and the logarithm of the sum of exponentials less it."""
    at = number * PARTS + tl.arange(0, PARTS)
    parts = tl.load(highest + at)
    most = tl.max(parts, 0)
    return most, tl.log(tl.sum(tl.load(sums + at) * tl.exp(parts - most), 0))


def contrast_rows(
    logits: torch.Tensor,
    own: torch.Tensor,
    others: torch.Tensor,
    other: torch.Tensor,
    numbers: torch.Tensor,
) -> torch.Tensor:
    """:func:`saccade_kernels.distributions.contrast_rows` in Triton; float64 in PyTorch."""
    if logits.dtype == torch.float64:
        return distributions.contrast_rows(logits, own, others, other, numbers)
    width = logits.shape[-1]
    found = (logits, own, *_parts(logits, own), others, other, *_parts(others, other))
    output = logits.new_empty(len(own), width)
    _launch(contrast_kernel, len(own), width, *found, numbers.contiguous(), output)
    return output


def divergences(
    logits: torch.Tensor,
    own: torch.Tensor,
    others: torch.Tensor,
    owners: torch.Tensor,
    is_jsd: torch.Tensor,
) -> torch.Tensor:
    """:func:`saccade_kernels.distributions.divergences` in Triton; float64 in PyTorch."""
    if logits.dtype == torch.float64:
        return distributions.divergences(logits, own, others, owners, is_jsd)
    rows, width = torch.arange(len(others), device=others.device), logits.shape[-1]
    found = (logits, own, *_parts(logits, own), others, owners, *_parts(others, rows))
    sums = logits.new_empty(len(others), PARTS)
    _launch(divergence_kernel, len(others), width, *found, is_jsd.view(torch.uint8), sums)
    return sums.sum(-1)


def mask_rows(
    logits: torch.Tensor, rows: torch.Tensor, allowed: torch.Tensor, which: torch.Tensor
) -> None:
    """:func:`saccade_kernels.distributions.mask_rows` in Triton; float64 in PyTorch."""
    if logits.dtype == torch.float64:
        distributions.mask_rows(logits, rows, allowed, which)
        return
    for tensor in (logits, allowed):
        assert tensor.is_contiguous(), "rows lie one behind another"
    _launch(mask_kernel, len(rows), logits.shape[-1], logits, rows, allowed, which)


def _parts(logits: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    assert logits.is_contiguous(), "rows lie one behind another"
    highest, sums = (logits.new_empty(len(rows), PARTS, dtype=torch.float32) for _ in range(2))
    _launch(parts_kernel, len(rows), logits.shape[-1], logits, rows, highest, sums)
    return highest, sums


def _launch(kernel: triton.JITFunction, rows: int, width: int, *tensors: torch.Tensor) -> None:
    if rows:
        kernel[(rows, PARTS)](*tensors, WIDTH=width, PARTS=PARTS, BLOCK=BLOCK, num_warps=WARPS)
