"""Triton gradients of a layer's small steps: one program a gradient's row, or some of it.

Rounding is that of :mod:`saccade_kernels.layer_gradients`. Several losses of a row read the same
activations, where the forward pass left them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import layer_gradients as plain
from saccade_kernels.gpu.gates import ROOT_HALF, TANH_SCALE, squashed
from saccade_kernels.gpu.rope import head_block
from saccade_kernels.gpu.rounding import narrow, rounded
from saccade_kernels.gpu.tiles import needs_upcast
from saccade_kernels.gpu.tuning import small_config
from saccade_kernels.layers import Heads, RMSNorm, Rotation

UNSPECIALISED = ("losses",)
DENSITY = tl.constexpr(0.3989422804014327)
"""1 / sqrt(2 pi)."""
CUBE = tl.constexpr(0.044715)


@triton.jit
def place_of(rows, losses):
    """Where the activations of this program's row lie."""
    return tl.load(rows + tl.program_id(0) // losses)


@triton.jit
def back(scaled, x, root, dot, SIZE: tl.constexpr):
    """Through x / RMS(x), from the gradient times the weight; ``dot`` is the sum of it times x."""
    return scaled * root - dot * root * root * root / SIZE * x


@triton.jit
def weighted(grad, weight, TYPE: tl.constexpr, PLUS_ONE: tl.constexpr, UPCAST: tl.constexpr):
    """The gradient times a norm's weight, rounded where the plain layers round."""
    if PLUS_ONE:
        return grad * (1.0 + weight)
    else:
        return rounded(grad * weight, TYPE, UPCAST)


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=["rows"])
def norm_gradient_kernel(
    grad,
    hidden,
    rows,
    weight,
    onto,
    output,
    epsilon,
    losses,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One row of a gradient. Grid (rows of it)."""
    TYPE: tl.constexpr = output.dtype.element_ty
    place = place_of(rows, losses)
    row = tl.program_id(0).to(tl.int64) * SIZE
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    x = tl.load(hidden + place * SIZE + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + row + at, mask=inside, other=0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(x * x, 0) / SIZE + epsilon)
    scaled = weighted(g, w, TYPE, PLUS_ONE, UPCAST)
    found = back(scaled, x, root, tl.sum(scaled * x, 0), SIZE)
    if ADD:
        other = tl.load(onto + row + at, mask=inside, other=0.0).to(tl.float32)
        found = other + rounded(found, TYPE, UPCAST)
    tl.store(output + row + at, narrow(found, TYPE, UPCAST), mask=inside)


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=["rows"])
def gate_gradient_kernel(
    grad,
    merged,
    rows,
    output,
    losses,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """BLOCK columns of one row of a gradient, of gates and of ups. Grid (rows of it, blocks)."""
    TYPE: tl.constexpr = output.dtype.element_ty
    place = place_of(rows, losses) * (2 * SIZE)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    gate = tl.load(merged + place + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(merged + place + SIZE + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + row * SIZE + at, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        bent = squashed(1.0, gate)
        y = gate * bent
        slope = bent * (1.0 + gate * (1.0 - bent))
    elif ACTIVATION == "gelu":
        half = 0.5 * (1.0 + tl.erf(gate * ROOT_HALF))
        y = gate * half
        slope = half + gate * tl.exp(-0.5 * gate * gate) * DENSITY
    else:
        tl.static_assert(ACTIVATION == "gelu_pytorch_tanh")
        half = squashed(1.0, (gate + CUBE * gate * gate * gate) * TANH_SCALE)
        y = gate * half
        steep = TANH_SCALE * (1.0 + 3.0 * CUBE * gate * gate)
        slope = half + gate * half * (1.0 - half) * steep
    through = rounded(g * up, TYPE, UPCAST) * slope
    to = output + row * (2 * SIZE) + at
    tl.store(to, narrow(through, TYPE, UPCAST), mask=inside)
    tl.store(to + SIZE, narrow(g * rounded(y, TYPE, UPCAST), TYPE, UPCAST), mask=inside)


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=["rows"])
def rope_gradient_kernel(
    grad_query,
    grad_key,
    grad_value,
    merged,
    rows,
    weight,
    cos,
    sin,
    output,
    epsilon,
    losses,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    NORM: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """BLOCK of the heads of one row of a gradient. Grid (rows of it, blocks)."""
    HALF: tl.constexpr = D // 2
    TYPE: tl.constexpr = output.dtype.element_ty
    ROW: tl.constexpr = (HEADS + 2 * KV_HEADS) * D
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.arange(0, PAIRS)
    inside = (pair < HALF)[None, :]
    is_query = (head < HEADS)[:, None] & inside
    is_key = ((head >= HEADS) & (head < HEADS + KV_HEADS))[:, None] & inside
    is_value = ((head >= HEADS + KV_HEADS) & (head < HEADS + 2 * KV_HEADS))[:, None] & inside
    at = head[:, None] * D + pair[None, :]
    from_query = grad_query + row * (HEADS * D) + at
    from_key = grad_key + row * (KV_HEADS * D) + (at - HEADS * D)
    from_value = grad_value + row * (KV_HEADS * D) + (at - (HEADS + KV_HEADS) * D)
    a = tl.load(from_query, mask=is_query, other=0.0).to(tl.float32)
    a += tl.load(from_key, mask=is_key, other=0.0).to(tl.float32)
    b = tl.load(from_query + HALF, mask=is_query, other=0.0).to(tl.float32)
    b += tl.load(from_key + HALF, mask=is_key, other=0.0).to(tl.float32)
    turn = (tl.program_id(0) // losses).to(tl.int64) * D + pair[None, :]
    c = tl.load(cos + turn, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + turn + HALF, mask=inside, other=0.0).to(tl.float32)
    low = rounded(a * c, TYPE, UPCAST) + rounded(b * s, TYPE, UPCAST)
    high = rounded(b * c, TYPE, UPCAST) - rounded(a * s, TYPE, UPCAST)
    if NORM:
        is_turned = is_query | is_key
        read = merged + place_of(rows, losses) * ROW + at
        x = tl.load(read, mask=is_turned, other=0.0).to(tl.float32)
        y = tl.load(read + HALF, mask=is_turned, other=0.0).to(tl.float32)
        root = tl.rsqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / D + epsilon)[:, None]
        w = tl.load(weight + at, mask=is_turned, other=0.0).to(tl.float32)
        low = weighted(rounded(low, TYPE, UPCAST), w, TYPE, PLUS_ONE, UPCAST)
        w = tl.load(weight + at + HALF, mask=is_turned, other=0.0).to(tl.float32)
        high = weighted(rounded(high, TYPE, UPCAST), w, TYPE, PLUS_ONE, UPCAST)
        dot = (tl.sum(low * x, 1) + tl.sum(high * y, 1))[:, None]
        low, high = back(low, x, root, dot, D), back(high, y, root, dot, D)
    low += tl.load(from_value, mask=is_value, other=0.0).to(tl.float32)
    high += tl.load(from_value + HALF, mask=is_value, other=0.0).to(tl.float32)
    to = output + row * ROW + at
    tl.store(to, narrow(low, TYPE, UPCAST), mask=is_query | is_key | is_value)
    tl.store(to + HALF, narrow(high, TYPE, UPCAST), mask=is_query | is_key | is_value)


def norm_gradient(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    norm: RMSNorm,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`saccade_kernels.layer_gradients.norm_gradient` in Triton; float64 in PyTorch."""
    if grad.dtype == torch.float64:
        return plain.norm_gradient(grad, hidden, rows, norm, onto)
    assert norm.weight.shape == grad.shape[-1:], "one weight for all rows"
    count, size = grad.shape
    output = grad.new_empty(grad.shape)
    block = int(triton.next_power_of_2(size))
    if count:
        norm_gradient_kernel[(count,)](
            grad.contiguous(),
            hidden.contiguous(),
            rows,
            norm.weight,
            onto if onto is None else onto.contiguous(),
            output,
            norm.epsilon,
            count // len(rows),
            SIZE=size,
            BLOCK=block,
            ADD=onto is not None,
            PLUS_ONE=norm.plus_one,
            UPCAST=needs_upcast(grad.dtype),
            num_warps=small_config("norm", grad.dtype).warps(block),
        )
    return output


def gate_gradient(
    grad: torch.Tensor, merged: torch.Tensor, rows: torch.Tensor, activation: str
) -> torch.Tensor:
    """:func:`saccade_kernels.layer_gradients.gate_gradient` in Triton; float64 in PyTorch."""
    if grad.dtype == torch.float64:
        return plain.gate_gradient(grad, merged, rows, activation)
    count, size = grad.shape
    output = grad.new_empty((count, 2 * size))
    config = small_config("gate", grad.dtype)
    if count:
        gate_gradient_kernel[(count, triton.cdiv(size, config.block))](
            grad.contiguous(),
            merged.contiguous(),
            rows,
            output,
            count // len(rows),
            SIZE=size,
            BLOCK=config.block,
            ACTIVATION=activation,
            UPCAST=needs_upcast(grad.dtype),
            num_warps=config.warps(config.block),
        )
    return output


def rope_gradient(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    merged: torch.Tensor | None,
    rows: torch.Tensor,
    heads: Heads,
    rotation: Rotation,
) -> torch.Tensor:
    """:func:`saccade_kernels.layer_gradients.rope_gradient` in Triton; float64 in PyTorch."""
    query, key, value = (part.contiguous() for part in parts)
    if query.dtype == torch.float64:
        return plain.rope_gradient(parts, merged, rows, heads, rotation)
    count, losses, norm = query.shape[0], query.shape[1], heads.norm
    width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim
    output = query.new_empty((count * losses, width))
    config = small_config("rope", query.dtype)
    pairs, block = head_block(heads.head_dim, config)
    if len(output):
        blocks = triton.cdiv(heads.heads + 2 * heads.kv_heads, block)
        rope_gradient_kernel[(len(output), blocks)](
            query,
            key,
            value,
            merged if merged is None else merged.contiguous(),
            rows,
            None if norm is None else norm.weight,
            rotation.cos,
            rotation.sin,
            output,
            0.0 if norm is None else norm.epsilon,
            losses,
            HEADS=heads.heads,
            KV_HEADS=heads.kv_heads,
            D=heads.head_dim,
            BLOCK=block,
            PAIRS=pairs,
            NORM=norm is not None,
            PLUS_ONE=norm is not None and norm.plus_one,
            UPCAST=needs_upcast(query.dtype),
            num_warps=config.warps(2 * pairs * block),
        )
    return output
