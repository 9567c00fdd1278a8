"""Triton rotary embedding: heads normed, rotated and stored, all from one merged row.

Rounding is that of :mod:`saccade_kernels.layers`, bit for bit in bf16 and fp16 where heads are not
normed; in float32 a product may reach its sum unrounded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import layers
from saccade_kernels.gpu.norms import normed
from saccade_kernels.gpu.rounding import narrow, rounded
from saccade_kernels.gpu.tiles import needs_upcast
from saccade_kernels.gpu.tuning import SmallConfig, small_config
from saccade_kernels.layers import Heads, Rotation


@triton.jit(do_not_specialize_on_alignment=["slots"])
def rope_store_kernel(
    merged,
    weight,
    cos,
    sin,
    slots,
    query,
    key_cache,
    value_cache,
    epsilon,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    NORM: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """BLOCK of the heads of one token: queries to ``query``, keys and values to the cache.

    Rows of ``merged`` are ROW apart; PAIRS is a power of two, D / 2 or more. Grid (tokens, blocks).
    """
    HALF: tl.constexpr = D // 2
    TYPE: tl.constexpr = merged.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.arange(0, PAIRS)
    inside = (pair < HALF)[None, :]
    is_turned = (head < HEADS + KV_HEADS)[:, None]
    real = (head < HEADS + 2 * KV_HEADS)[:, None] & inside
    at = head[:, None] * D + pair[None, :]
    a = tl.load(merged + token * ROW + at, mask=real, other=0.0).to(tl.float32)
    b = tl.load(merged + token * ROW + at + HALF, mask=real, other=0.0).to(tl.float32)
    low, high = a, b
    if NORM:
        factor = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + epsilon)[:, None]
        own = is_turned & inside
        w = tl.load(weight + at, mask=own, other=0.0).to(tl.float32)
        low = normed(a, factor, w, TYPE, PLUS_ONE, UPCAST).to(tl.float32)
        w = tl.load(weight + at + HALF, mask=own, other=0.0).to(tl.float32)
        high = normed(b, factor, w, TYPE, PLUS_ONE, UPCAST).to(tl.float32)
    turn = token * D + pair[None, :]
    c = tl.load(cos + turn, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + turn + HALF, mask=inside, other=0.0).to(tl.float32)
    x = rounded(low * c, TYPE, UPCAST) - rounded(high * s, TYPE, UPCAST)
    y = rounded(high * c, TYPE, UPCAST) + rounded(low * s, TYPE, UPCAST)
    x = narrow(tl.where(is_turned, x, a), TYPE, UPCAST)
    y = narrow(tl.where(is_turned, y, b), TYPE, UPCAST)

    is_query = (head < HEADS)[:, None] & inside
    to = query + token * (HEADS * D) + at
    tl.store(to, x, mask=is_query)
    tl.store(to + HALF, y, mask=is_query)
    slot = tl.load(slots + token) * (KV_HEADS * D)
    is_key = (head >= HEADS)[:, None] & is_turned & inside
    to = key_cache + slot + (at - HEADS * D)
    tl.store(to, x, mask=is_key)
    tl.store(to + HALF, y, mask=is_key)
    is_value = (head >= HEADS + KV_HEADS)[:, None] & real
    to = value_cache + slot + (at - (HEADS + KV_HEADS) * D)
    tl.store(to, x, mask=is_value)
    tl.store(to + HALF, y, mask=is_value)


def norm_rope_store(
    merged: torch.Tensor,
    heads: Heads,
    rotation: Rotation,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    config: SmallConfig | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`saccade_kernels.layers.norm_rope_store` in Triton; float64 in PyTorch."""
    caches = (key_cache, value_cache, slots)
    if merged.dtype == torch.float64:
        return layers.norm_rope_store(merged, heads, rotation, *caches, out)
    merged = merged if merged.stride(-1) == 1 else merged.contiguous()
    tokens, norm = merged.shape[0], heads.norm
    query = merged.new_empty((tokens, heads.heads, heads.head_dim)) if out is None else out
    assert query.is_contiguous(), "rows lie one behind another"
    config = config or small_config("rope", merged.dtype)
    pairs, block = head_block(heads.head_dim, config)
    if tokens:
        rope_store_kernel[(tokens, triton.cdiv(heads.heads + 2 * heads.kv_heads, block))](
            merged,
            None if norm is None else norm.weight,
            rotation.cos,
            rotation.sin,
            slots,
            query,
            key_cache,
            value_cache,
            0.0 if norm is None else norm.epsilon,
            HEADS=heads.heads,
            KV_HEADS=heads.kv_heads,
            D=heads.head_dim,
            ROW=merged.stride(0),
            BLOCK=block,
            PAIRS=pairs,
            NORM=norm is not None,
            PLUS_ONE=norm is not None and norm.plus_one,
            UPCAST=needs_upcast(merged.dtype),
            num_warps=config.warps(2 * pairs * block),
        )
    return query


def head_block(head_dim: int, config: SmallConfig) -> tuple[int, int]:
    """Pairs of a head in a program, padded to a power of two; and heads of a program."""
    pairs = int(triton.next_power_of_2(head_dim // 2))
    return pairs, max(config.block // (2 * pairs), 1)
