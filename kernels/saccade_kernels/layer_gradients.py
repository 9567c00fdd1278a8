"""Plain PyTorch of the gradients of a layer's small steps: the specification of the kernels.

Each function goes back through one function of :mod:`saccade_kernels.layers` for several losses of
each row at once: gradients are [n * M, ...], the M of a row side by side. What the forward pass
read is [any, ...], and ``rows``, int64 [n], says where the n rows lie there. Arithmetic is that of
autograd through the forward function, in its order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from saccade_kernels.layers import ACTIVATIONS, Heads, RMSNorm, Rotation
from saccade_kernels.residual_tables import ResidualTables, edit_residual

ROOT_HALF, TANH_SCALE, CUBE = math.sqrt(0.5), math.sqrt(2 / math.pi), 0.044715
ROOT_TAU = math.sqrt(2 * math.pi)


def norm_gradient(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    norm: RMSNorm,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient of :func:`~saccade_kernels.layers.rms_norm`, added to ``onto`` if there is one.

    Args:
        grad: [n * M, ..., size], of what the norm gave.
        hidden: [any, ..., size], what it read.
        onto: as ``grad``, what else reached the same rows.
    """
    read = hidden.index_select(0, rows)
    x = read.to(torch.float32)[:, None]
    split, weight = grad.view(len(read), -1, *grad.shape[1:]), norm.weight
    if norm.plus_one:
        scaled = split.to(torch.float32) * (1.0 + weight.to(torch.float32))
    else:
        scaled = (split * weight).to(torch.float32)
    root = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.epsilon)
    along = -0.5 * (scaled * x).sum(-1, keepdim=True) * root.pow(3) / x.shape[-1]
    found = (scaled * root + along * (2 * x)).to(grad.dtype).flatten(0, 1)
    return found if onto is None else onto + found


def gate_gradient(
    grad: torch.Tensor, merged: torch.Tensor, rows: torch.Tensor, activation: str
) -> torch.Tensor:
    """Gradient [n * M, 2 * size] of :func:`~saccade_kernels.layers.gate`.

    Args:
        grad: [n * M, size].
        merged: [any, 2 * size], what it read.
    """
    read = merged.index_select(0, rows)
    split = grad.view(len(read), -1, *grad.shape[1:])
    gates, up = read[:, None].chunk(2, -1)
    slope = SLOPES[activation](gates.to(torch.promote_types(grad.dtype, torch.float32)))
    through = ((split * up).to(slope.dtype) * slope).to(grad.dtype)
    return torch.cat((through, split * ACTIVATIONS[activation](gates)), -1).flatten(0, 1)


def rope_gradient(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    merged: torch.Tensor | None,
    rows: torch.Tensor,
    heads: Heads,
    rotation: Rotation,
) -> torch.Tensor:
    """Gradient of :func:`~saccade_kernels.layers.norm_rope`.

    Args:
        parts: of query [n, M, heads, head_dim], and of key and value [n, M, kv_heads, head_dim].
        merged: [any, (heads + 2 kv_heads) * head_dim], what it read; None: heads have no norm.
        rotation: of the n rows.

    Returns:
        [n * M, (heads + 2 kv_heads) * head_dim].
    """
    query, key, value = parts
    turned = torch.cat((query, key), 2)
    # A rotation back: halves change places behind the product with sines.
    first, second = (turned * rotation.sin[:, None]).chunk(2, -1)
    found = turned * rotation.cos[:, None] + torch.cat((second, first), -1)
    if heads.norm is not None:
        assert merged is not None
        read = merged.view(len(merged), -1, heads.head_dim)[:, : heads.heads + heads.kv_heads]
        found = norm_gradient(found.flatten(0, 1), read, rows, heads.norm).view(found.shape)
    return torch.cat((found, value), 2).flatten(2).flatten(0, 1)


def residual_gradient(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    programs: torch.Tensor,
    tables: ResidualTables,
    site: int,
) -> torch.Tensor:
    """Gradient [n * M, size] of :func:`saccade_kernels.residual_tables.edit_residual`, by autograd.

    Args:
        grad: [n * M, size], of what the edits left.
        hidden: [any, size], what they read.
        programs: int32 [n], the table row that each of the n rows follows.
    """
    read = hidden.index_select(0, rows)
    times = len(grad) // max(len(read), 1)
    with torch.inference_mode(False), torch.enable_grad():
        leaf = read.repeat_interleave(times, 0).clone().requires_grad_()
        edited = edit_residual(leaf, programs.repeat_interleave(times), tables, site)
        (found,) = torch.autograd.grad(edited, leaf, grad.clone())
    return found


def key_shares(
    saliency: torch.Tensor,
    context_lens: torch.Tensor,
    window: int,
    start: torch.Tensor,
    end: torch.Tensor,
) -> torch.Tensor:
    """What the share of the keys J in a row of saliency is made of.

    With s, the mean over heads: the sum of its squares over all keys that the row sees, and its sum
    over J. Several such parts are of different keys, and add up to those of all.

    Args:
        saliency: [n, M, heads, keys].
        context_lens: int32 [n], keys of each row, 0 for padding; ``window``: how many it sees.
        start, end: int64 [n], J of each row.

    Returns:
        [n, M, parts, 2], in saliency's dtype.
    """
    at = torch.arange(saliency.shape[-1], device=saliency.device)
    low = (context_lens - window).clamp(min=0)[:, None] if window > 0 else 0
    seen = (at >= low) & (at < context_lens[:, None])
    row = saliency.mean(2).masked_fill(~seen[:, None], 0.0)
    inside = (at >= start[:, None]) & (at < end[:, None])
    return torch.stack((row.square().sum(-1), (row * inside[:, None]).sum(-1)), -1)[:, :, None]


def _silu(x: torch.Tensor) -> torch.Tensor:
    squashed = x.sigmoid()
    return squashed * (1 + x * (1 - squashed))


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.erf(x * ROOT_HALF)) + x * torch.exp(-0.5 * x * x) / ROOT_TAU


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    bent = torch.tanh(TANH_SCALE * (x + CUBE * x.pow(3)))
    return 0.5 * (1 + bent) + 0.5 * x * (1 - bent * bent) * TANH_SCALE * (1 + 3 * CUBE * x * x)


SLOPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
}
"""Derivatives of the activations."""
