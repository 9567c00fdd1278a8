"""Triton gate of an MLP: activation(gate) * up, both read from one merged row.

The activation is rounded before it multiplies, as in :mod:`saccade_kernels.layers`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import layers
from saccade_kernels.gpu.rounding import narrow, rounded
from saccade_kernels.gpu.tiles import needs_upcast
from saccade_kernels.gpu.tuning import SmallConfig, small_config

ROOT_HALF = tl.constexpr(0.7071067811865476)
TANH_SCALE = tl.constexpr(1.5957691216057308)
"""2 sqrt(2 / pi): tanh(x) is 2 sigmoid(2 x) - 1."""


@triton.jit
def gate_kernel(
    merged,
    output,
    SIZE: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """BLOCK columns of one row; rows of ``merged`` are ROW apart. Grid (rows, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    TYPE: tl.constexpr = output.dtype.element_ty
    gate = tl.load(merged + row * ROW + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(merged + row * ROW + SIZE + at, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        y = squashed(gate, gate)
    elif ACTIVATION == "gelu":
        y = gate * 0.5 * (1.0 + tl.erf(gate * ROOT_HALF))
    else:
        tl.static_assert(ACTIVATION == "gelu_pytorch_tanh")
        y = squashed(gate, (gate + 0.044715 * gate * gate * gate) * TANH_SCALE)
    y = rounded(y, TYPE, UPCAST) * up
    tl.store(output + row * SIZE + at, narrow(y, TYPE, UPCAST), mask=inside)


@triton.jit
def squashed(x, by):
    """x * sigmoid(by)."""
    return x / (1.0 + tl.exp(tl.minimum(-by, 88.0)))


def gate(
    merged: torch.Tensor,
    activation: str,
    invariant: bool = False,
    config: SmallConfig | None = None,
) -> torch.Tensor:
    """:func:`saccade_kernels.layers.gate` in Triton; float64 in PyTorch."""
    if merged.dtype == torch.float64:
        return layers.gate(merged, activation)
    merged = merged if merged.stride(-1) == 1 else merged.contiguous()
    rows, size = merged.shape[0], merged.shape[1] // 2
    output = merged.new_empty((rows, size))
    config = config or small_config("gate", merged.dtype)
    if rows:
        gate_kernel[(rows, triton.cdiv(size, config.block))](
            merged,
            output,
            SIZE=size,
            ROW=merged.stride(0),
            BLOCK=config.block,
            ACTIVATION=activation,
            UPCAST=needs_upcast(merged.dtype),
            num_warps=config.warps(config.block),
        )
    return output
