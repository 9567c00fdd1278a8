"""Triton store: write a step's keys and values into the paged cache, both in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["key_token", "key_head", "value_token", "value_head"])
def store_kernel(
    key,
    value,
    key_cache,
    value_cache,
    slots,
    key_token,
    key_head,
    value_token,
    value_head,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All heads of one token. Grid (tokens)."""
    token = tl.program_id(0)
    slot = tl.load(slots + token)
    at = tl.arange(0, BLOCK)
    inside = at < KV_HEADS * D
    head, column = at // D, at % D
    to = slot * (KV_HEADS * D) + at
    k = tl.load(key + token * key_token + head * key_head + column, mask=inside)
    tl.store(key_cache + to, k.to(key_cache.dtype.element_ty), mask=inside)
    v = tl.load(value + token * value_token + head * value_head + column, mask=inside)
    tl.store(value_cache + to, v.to(value_cache.dtype.element_ty), mask=inside)


def store(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """:func:`saccade_kernels.reference.store` in Triton."""
    tokens, kv_heads, dim = key.shape
    if tokens:
        store_kernel[(tokens,)](
            key,
            value,
            key_cache,
            value_cache,
            slots,
            *key.stride()[:2],
            *value.stride()[:2],
            KV_HEADS=kv_heads,
            D=dim,
            BLOCK=triton.next_power_of_2(kv_heads * dim),
        )
