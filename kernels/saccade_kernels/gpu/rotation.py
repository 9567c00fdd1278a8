"""Triton cosines and sines of a step's rotary positions, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import layers
from saccade_kernels.gpu.rounding import narrow
from saccade_kernels.gpu.tiles import needs_upcast
from saccade_kernels.layers import Rotation


@triton.jit(do_not_specialize=["stride"], do_not_specialize_on_alignment=["positions"])
def rotation_kernel(
    positions,
    frequencies,
    axis,
    cos,
    sin,
    factor,
    stride,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    AXES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Cosines and signed sines of one token; axes of ``positions`` are ``stride`` apart.

    Without AXES all pairs turn by the first. Grid (tokens).
    """
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    inside = pair < PAIRS
    TYPE: tl.constexpr = cos.dtype.element_ty
    if AXES:
        which = tl.load(axis + pair, mask=inside, other=0)
        place = tl.load(positions + which * stride + token, mask=inside, other=0)
    else:
        place = tl.load(positions + token)
    angle = place.to(tl.float32) * tl.load(frequencies + pair, mask=inside, other=0.0)
    c = narrow(tl.cos(angle) * factor, TYPE, UPCAST)
    s = tl.sin(angle) * factor
    at = token * (2 * PAIRS) + pair
    tl.store(cos + at, c, mask=inside)
    tl.store(cos + at + PAIRS, c, mask=inside)
    tl.store(sin + at, narrow(-s, TYPE, UPCAST), mask=inside)
    tl.store(sin + at + PAIRS, narrow(s, TYPE, UPCAST), mask=inside)


def rotation(
    positions: torch.Tensor,
    frequencies: torch.Tensor,
    axis: torch.Tensor | None,
    factor: float,
    dtype: torch.dtype,
) -> Rotation:
    """:func:`saccade_kernels.layers.rotation` in Triton; float64 in PyTorch."""
    if dtype == torch.float64:
        return layers.rotation(positions, frequencies, axis, factor, dtype)
    positions = positions if positions.stride(-1) == 1 else positions.contiguous()
    tokens, pairs = positions.shape[1], frequencies.shape[0]
    cos, sin = positions.new_empty((2, tokens, 1, 2 * pairs), dtype=dtype)
    if tokens:
        rotation_kernel[(tokens,)](
            positions,
            frequencies,
            axis,
            cos,
            sin,
            factor,
            positions.stride(0),
            PAIRS=pairs,
            BLOCK=triton.next_power_of_2(pairs),
            AXES=axis is not None,
            UPCAST=needs_upcast(dtype),
            num_warps=1,
        )
    return Rotation(cos, sin)
