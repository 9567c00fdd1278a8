"""Plain PyTorch of what a decoder layer does between matrix products and attention.

It rounds as transformers' layers do: a norm is computed in float32 and rounded to the residual's
dtype before its weight multiplies it (:class:`RMSNorm`), everything else is rounded after every
operation. On a CPU the results are bit for bit those of transformers' modules.
:mod:`~saccade_kernels.layer_gradients` goes back through them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from saccade_kernels.reference import store

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
"""Activations of a gated MLP by the names that configurations use."""

UNDIVIDED = 16384
"""Numbers that PyTorch has one thread take, whatever the activation."""

VECTOR = 64
"""A multiple of the numbers that any CPU takes at once."""


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """Root mean square norm over the last dimension.

    ``plus_one``: Gemma's form, which multiplies by 1 + weight, and before it rounds.
    """

    weight: torch.Tensor  # [size], or [heads, size] where every head has its own
    epsilon: float
    plus_one: bool = False


@dataclass(frozen=True, slots=True)
class Heads:
    """How a row of merged queries, keys and values is divided, and the norm of its heads."""

    heads: int
    kv_heads: int
    head_dim: int
    norm: RMSNorm | None = None  # weight [heads + kv_heads, head_dim]


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of a step's rotary positions, made once for all layers.

    The first half of each head's dimensions pairs with the second. ``sin`` is negated in its first
    half, so that a rotated head is ``x * cos + swapped halves of x * sin``.
    """

    cos: torch.Tensor  # [tokens, 1, head_dim], in the dtype of the heads
    sin: torch.Tensor  # likewise


def rms_norm(hidden: torch.Tensor, norm: RMSNorm, out: torch.Tensor | None = None) -> torch.Tensor:
    """Norm of [..., size], in the same dtype, written to ``out`` if there is one."""
    weight, size, dtype = norm.weight, hidden.shape[-1:], hidden.dtype
    if norm.plus_one:
        normed = functional.rms_norm(hidden.to(torch.float32), size, None, norm.epsilon)
        found = (normed * (1.0 + weight.to(torch.float32))).to(dtype)
    else:
        narrow = hidden.to(torch.float32) if dtype == torch.float64 else hidden
        found = weight * functional.rms_norm(narrow, size, None, norm.epsilon).to(dtype)
    return found if out is None else out.copy_(found)


def add_norm(
    residual: torch.Tensor,
    update: torch.Tensor | None,
    norm: RMSNorm,
    update_norm: RMSNorm | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add what a layer's half computed to the residual, and norm the sum.

    Args:
        residual: [tokens, hidden_size]; ``update`` likewise, or None before the first layer.
        update_norm: norms the update before it is added, in Gemma's layers.
        out: [tokens, hidden_size], where the new residual is written if there is an update.

    Returns:
        The new residual, and its norm for the next half.
    """
    if update is not None:
        if update_norm is not None:
            update = rms_norm(update, update_norm)
        residual = torch.add(residual, update, out=out)
    return residual, rms_norm(residual, norm)


def rotation(
    positions: torch.Tensor,
    frequencies: torch.Tensor,
    axis: torch.Tensor | None,
    factor: float,
    dtype: torch.dtype,
) -> Rotation:
    """Cosines and sines of a step, computed in float32 and rounded once.

    Args:
        positions: int64 [axes, tokens].
        frequencies: float32 [head_dim / 2], radians a position.
        axis: int64 [head_dim / 2], the axis that each pair turns by; None: all by the first.
        factor: multiplies both.
        dtype: of the heads.
    """
    # [tokens, pairs], or [tokens, 1] where all pairs turn by one axis
    place = positions[:1] if axis is None else positions.index_select(0, axis)
    angle = place.T.to(torch.float32) * frequencies
    cos, sin = (angle.cos() * factor).to(dtype), (angle.sin() * factor).to(dtype)
    return Rotation(torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None])


def norm_rope(
    merged: torch.Tensor, heads: Heads, rotation: Rotation
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norm the query and key heads, if the model does, and rotate them.

    Args:
        merged: [tokens, (heads + 2 kv_heads) * head_dim], queries, then keys, then values.

    Returns:
        query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim].
    """
    last = heads.heads + heads.kv_heads
    split = merged.view(merged.shape[0], last + heads.kv_heads, heads.head_dim)
    turning = split[:, :last]
    if heads.norm is not None:
        turning = rms_norm(turning, heads.norm)
    first, second = turning.chunk(2, -1)
    swapped = torch.cat((second, first), -1)
    turned = turning * rotation.cos + swapped * rotation.sin
    return turned[:, : heads.heads], turned[:, heads.heads :], split[:, last:]


def norm_rope_store(
    merged: torch.Tensor,
    heads: Heads,
    rotation: Rotation,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`norm_rope`, with keys and values written where attention finds them.

    Args:
        key_cache, value_cache, slots: as in :func:`saccade_kernels.reference.store`.
        out: [tokens, heads, head_dim], where queries are written.

    Returns:
        query [tokens, heads, head_dim].
    """
    query, key, value = norm_rope(merged, heads, rotation)
    store(key, value, key_cache, value_cache, slots)
    return query if out is None else out.copy_(query)


def gate(merged: torch.Tensor, activation: str, invariant: bool = False) -> torch.Tensor:
    """activation(gate) * up of [tokens, 2 * size], gates first: [tokens, size].

    ``invariant``: a row's bits do not depend on how many there are.
    """
    gates, up = merged.chunk(2, -1)
    activate = ACTIVATIONS[activation]
    return (_activated(gates, activate) if invariant else activate(gates)) * up


def _activated(
    gates: torch.Tensor, activate: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Activations of [tokens, size], of one shape in each call: whole vectors, on one thread.

    What is left over behind whole vectors has another form of the exponential, and threads divide
    what is large anywhere.
    """
    rows, size = gates.shape
    short = -size % VECTOR
    each = max(1, UNDIVIDED // (size + short))
    padded = functional.pad(gates, (0, short, 0, -rows % each))
    return torch.cat([activate(part) for part in torch.split(padded, each)])[:rows, :size]
