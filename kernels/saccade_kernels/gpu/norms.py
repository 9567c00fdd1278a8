"""Triton RMS norms: one program a row, with the addition before it and the norm of what is added.

Rounding is that of :mod:`saccade_kernels.layers`: sums are bit for bit its own, norms differ in the
order in which squares are added.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import layers
from saccade_kernels.gpu.rounding import narrow, rounded
from saccade_kernels.gpu.tiles import needs_upcast
from saccade_kernels.gpu.tuning import SmallConfig, small_config
from saccade_kernels.layers import RMSNorm


@triton.jit
def norm_kernel(
    residual,
    update,
    update_weight,
    weight,
    total,
    output,
    update_epsilon,
    epsilon,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    NORM_UPDATE: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """total = residual + update, the update normed or not; output = norm of it. Grid (rows).

    Without ADD there are no update and no total.
    """
    row = tl.program_id(0).to(tl.int64) * SIZE
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    TYPE: tl.constexpr = output.dtype.element_ty
    x = tl.load(residual + row + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        u = tl.load(update + row + at, mask=inside, other=0.0).to(tl.float32)
        if NORM_UPDATE:
            w = tl.load(update_weight + at, mask=inside, other=0.0).to(tl.float32)
            u = normed(u, root(u, update_epsilon, SIZE), w, TYPE, PLUS_ONE, UPCAST).to(tl.float32)
        x = rounded(x + u, TYPE, UPCAST)
        tl.store(total + row + at, x.to(TYPE), mask=inside)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    y = normed(x, root(x, epsilon, SIZE), w, TYPE, PLUS_ONE, UPCAST)
    tl.store(output + row + at, y, mask=inside)


@triton.jit
def root(x, epsilon, SIZE: tl.constexpr):
    """1 / RMS of a row; 0 behind its end."""
    return tl.rsqrt(tl.sum(x * x, 0) / SIZE + epsilon)


@triton.jit
def normed(x, factor, weight, TYPE: tl.constexpr, PLUS_ONE: tl.constexpr, UPCAST: tl.constexpr):
    """x * factor times the weight, in the dtype TYPE."""
    if PLUS_ONE:
        return narrow(x * factor * (1.0 + weight), TYPE, UPCAST)
    else:
        return narrow(rounded(x * factor, TYPE, UPCAST) * weight, TYPE, UPCAST)


def rms_norm(hidden: torch.Tensor, norm: RMSNorm, out: torch.Tensor | None = None) -> torch.Tensor:
    """:func:`saccade_kernels.layers.rms_norm` in Triton; float64 in PyTorch."""
    if hidden.dtype == torch.float64:
        return layers.rms_norm(hidden, norm, out)
    return _launch(hidden, None, norm, None, normed=out)[1]


def add_norm(
    residual: torch.Tensor,
    update: torch.Tensor | None,
    norm: RMSNorm,
    update_norm: RMSNorm | None = None,
    config: SmallConfig | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`saccade_kernels.layers.add_norm` in Triton; float64 in PyTorch."""
    if residual.dtype == torch.float64:
        return layers.add_norm(residual, update, norm, update_norm, out)
    return _launch(residual, update, norm, update_norm, config, out)


def _launch(
    residual: torch.Tensor,
    update: torch.Tensor | None,
    norm: RMSNorm,
    before: RMSNorm | None,
    config: SmallConfig | None = None,
    out: torch.Tensor | None = None,
    normed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    adds = update is not None
    before = before if adds else None
    for used in (norm, norm if before is None else before):
        assert used.weight.shape == residual.shape[-1:], "one weight for all rows"
        assert used.plus_one == norm.plus_one, "both norms of a launch have one form"
    x = residual.contiguous()
    output = x.new_empty(x.shape) if normed is None else normed
    assert output.is_contiguous(), "rows lie one behind another"
    total = None
    if adds:
        total = x.new_empty(x.shape) if out is None else out
        assert total.is_contiguous(), "rows lie one behind another"
    size = x.shape[-1]
    block = int(triton.next_power_of_2(size))
    if rows := x.numel() // max(size, 1):
        norm_kernel[(rows,)](
            x,
            None if update is None else update.contiguous(),
            None if before is None else before.weight,
            norm.weight,
            total,
            output,
            norm.epsilon if before is None else before.epsilon,
            norm.epsilon,
            SIZE=size,
            BLOCK=block,
            ADD=adds,
            NORM_UPDATE=before is not None,
            PLUS_ONE=norm.plus_one,
            UPCAST=needs_upcast(x.dtype),
            num_warps=(config or small_config("norm", x.dtype)).warps(block),
        )
    return residual if total is None else total, output
