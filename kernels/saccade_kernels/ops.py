"""The ops that everything above the kernels calls, and the one switch between backends.

Tensors on a CUDA device go to the Triton kernels, all others to the reference. They are called
directly, without the dispatcher's microseconds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from saccade_kernels import (
    columns_reference,
    distributions,
    gradients,
    head_sinks,
    layer_gradients,
    layers,
    products,
    reference,
    residual_tables,
    sinks,
)
from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.gradients import RowGradients
from saccade_kernels.head_sinks import HeadSinkTables
from saccade_kernels.layers import Heads, RMSNorm, Rotation
from saccade_kernels.residual_tables import ResidualTables
from saccade_kernels.sinks import SinkTags


def linear(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    invariant: bool = False,
) -> torch.Tensor:
    """See :func:`saccade_kernels.products.linear`."""
    return _tensor(_backend(hidden).linear(hidden, weight, bias, out, invariant))


def rms_norm(hidden: torch.Tensor, norm: RMSNorm, out: torch.Tensor | None = None) -> torch.Tensor:
    """See :func:`saccade_kernels.layers.rms_norm`."""
    return _tensor(_backend(hidden).rms_norm(hidden, norm, out))


def add_norm(
    residual: torch.Tensor,
    update: torch.Tensor | None,
    norm: RMSNorm,
    update_norm: RMSNorm | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`saccade_kernels.layers.add_norm`."""
    norms = (norm, update_norm)
    total, normed = _backend(residual).add_norm(residual, update, *norms, out=out)
    return _tensor(total), _tensor(normed)


def rotation(
    positions: torch.Tensor,
    frequencies: torch.Tensor,
    axis: torch.Tensor | None,
    factor: float,
    dtype: torch.dtype,
) -> Rotation:
    """See :func:`saccade_kernels.layers.rotation`."""
    found = _backend(positions).rotation(positions, frequencies, axis, factor, dtype)
    assert isinstance(found, Rotation)
    return found


def norm_rope_store(
    merged: torch.Tensor,
    heads: Heads,
    rotation: Rotation,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See :func:`saccade_kernels.layers.norm_rope_store`."""
    caches = (key_cache, value_cache, slots)
    return _tensor(_backend(merged).norm_rope_store(merged, heads, rotation, *caches, out=out))


def gate(merged: torch.Tensor, activation: str, invariant: bool = False) -> torch.Tensor:
    """See :func:`saccade_kernels.layers.gate`."""
    return _tensor(_backend(merged).gate(merged, activation, invariant))


def attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    emit: Emission | None = None,
) -> torch.Tensor:
    """Attend, decodes and prefills in one call; this step's keys are in the cache already.

    Args:
        query: [tokens, heads, head_dim].
        emit: if given, receives class masses and normalisers of all query rows.

    Returns:
        [tokens, heads, head_dim] in the query's dtype.
    """
    ops = _backend(query)
    arguments = (key_cache, value_cache, batch, layer, scale, softcap, window)
    if batch.invariant:
        return _tensor(ops.invariant_attention(query, *arguments, emit))
    decodes = batch.num_decodes
    if decodes == query.shape[0]:
        return _tensor(ops.decode(query, *arguments, emit))
    if decodes == 0:
        return _tensor(ops.prefill(query, *arguments, emit))
    first = None if emit is None else emit.rows(slice(0, decodes))
    second = None if emit is None else emit.rows(slice(decodes, None))
    head = ops.decode(query[:decodes], *arguments, first)
    return torch.cat([head, ops.prefill(query[decodes:], *arguments, second)])


def saliency(
    query: torch.Tensor,
    grad_output: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
) -> RowGradients:
    """See :func:`saccade_kernels.gradients.saliency`."""
    arguments = (key_cache, value_cache, batch, layer, scale, softcap, window)
    found = _backend(query).saliency(query, grad_output, *arguments)
    assert isinstance(found, RowGradients)
    return found


def norm_gradient(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    norm: RMSNorm,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:
    """See :func:`saccade_kernels.layer_gradients.norm_gradient`."""
    return _tensor(_backend(grad).norm_gradient(grad, hidden, rows, norm, onto))


def gate_gradient(
    grad: torch.Tensor, merged: torch.Tensor, rows: torch.Tensor, activation: str
) -> torch.Tensor:
    """See :func:`saccade_kernels.layer_gradients.gate_gradient`."""
    return _tensor(_backend(grad).gate_gradient(grad, merged, rows, activation))


def rope_gradient(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    merged: torch.Tensor | None,
    rows: torch.Tensor,
    heads: Heads,
    rotation: Rotation,
) -> torch.Tensor:
    """See :func:`saccade_kernels.layer_gradients.rope_gradient`."""
    return _tensor(_backend(parts[0]).rope_gradient(parts, merged, rows, heads, rotation))


def residual_gradient(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    programs: torch.Tensor,
    tables: ResidualTables,
    site: int,
) -> torch.Tensor:
    """See :func:`saccade_kernels.layer_gradients.residual_gradient`."""
    return _tensor(_backend(grad).residual_gradient(grad, hidden, rows, programs, tables, site))


def key_shares(
    saliency: torch.Tensor,
    context_lens: torch.Tensor,
    window: int,
    start: torch.Tensor,
    end: torch.Tensor,
) -> torch.Tensor:
    """See :func:`saccade_kernels.layer_gradients.key_shares`."""
    return _tensor(_backend(saliency).key_shares(saliency, context_lens, window, start, end))


def column_sums(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float,
    window: int,
    lse: torch.Tensor,
    first: torch.Tensor,
) -> torch.Tensor:
    """See :func:`saccade_kernels.columns_reference.column_sums`."""
    arguments = (key_cache, batch, layer, scale, softcap, window, lse, first)
    return _tensor(_backend(query).column_sums(query, *arguments))


def attention_rows(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float,
    window: int,
    lse: torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor:
    """See :func:`saccade_kernels.columns_reference.attention_rows`."""
    arguments = (key_cache, batch, layer, scale, softcap, window, lse, rows)
    return _tensor(_backend(query).attention_rows(query, *arguments))


def head_weights(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
) -> torch.Tensor:
    """See :func:`saccade_kernels.reference.head_weights`."""
    arguments = (key_cache, value_cache, batch, layer, scale, softcap, window)
    return _tensor(_backend(query).head_weights(query, *arguments))


def edit_residual(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    tables: ResidualTables,
    site: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See :func:`saccade_kernels.residual_tables.edit_residual`."""
    return _tensor(_backend(hidden).edit_residual(hidden, rows, tables, site, out))


def contrast_rows(
    logits: torch.Tensor,
    own: torch.Tensor,
    others: torch.Tensor,
    other: torch.Tensor,
    numbers: torch.Tensor,
) -> torch.Tensor:
    """See :func:`saccade_kernels.distributions.contrast_rows`."""
    return _tensor(_backend(logits).contrast_rows(logits, own, others, other, numbers))


def divergences(
    logits: torch.Tensor,
    own: torch.Tensor,
    others: torch.Tensor,
    owners: torch.Tensor,
    is_jsd: torch.Tensor,
) -> torch.Tensor:
    """See :func:`saccade_kernels.distributions.divergences`."""
    return _tensor(_backend(logits).divergences(logits, own, others, owners, is_jsd))


def mask_rows(
    logits: torch.Tensor, rows: torch.Tensor, allowed: torch.Tensor, which: torch.Tensor
) -> None:
    """See :func:`saccade_kernels.distributions.mask_rows`."""
    _backend(logits).mask_rows(logits, rows, allowed, which)


def store_sink_scores(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    dims: torch.Tensor,
    slots: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """See :func:`saccade_kernels.sinks.store_scores`."""
    _backend(hidden).store_sink_scores(hidden, rows, dims, slots, scores)


def settle_sink_tags(
    tags: SinkTags, scores: torch.Tensor, table: torch.Tensor, met: torch.Tensor
) -> None:
    """See :func:`saccade_kernels.sinks.settle_tags`."""
    _backend(scores).settle_sink_tags(tags, scores, table, met)


def find_head_sinks(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float,
    window: int,
    rows: torch.Tensor,
    tables: HeadSinkTables,
) -> None:
    """See :func:`saccade_kernels.head_sinks.find_head_sinks`."""
    arguments = (key_cache, batch, layer, scale, softcap, window, rows, tables)
    _backend(query).find_head_sinks(query, *arguments)


def settle_prompt_sinks(
    received: torch.Tensor, batch: AttentionBatch, layer: int, tables: HeadSinkTables
) -> None:
    """See :func:`saccade_kernels.head_sinks.settle_prompt_sinks`."""
    _backend(received).settle_prompt_sinks(received, batch, layer, tables)


class _Reference:
    """Plain PyTorch, on any device."""

    linear = staticmethod(products.linear)
    rms_norm = staticmethod(layers.rms_norm)
    add_norm = staticmethod(layers.add_norm)
    rotation = staticmethod(layers.rotation)
    norm_rope_store = staticmethod(layers.norm_rope_store)
    gate = staticmethod(layers.gate)
    decode = staticmethod(reference.decode)
    prefill = staticmethod(reference.prefill)
    invariant_attention = staticmethod(reference.invariant_attention)
    saliency = staticmethod(gradients.saliency)
    norm_gradient = staticmethod(layer_gradients.norm_gradient)
    gate_gradient = staticmethod(layer_gradients.gate_gradient)
    rope_gradient = staticmethod(layer_gradients.rope_gradient)
    residual_gradient = staticmethod(layer_gradients.residual_gradient)
    key_shares = staticmethod(layer_gradients.key_shares)
    column_sums = staticmethod(columns_reference.column_sums)
    attention_rows = staticmethod(columns_reference.attention_rows)
    head_weights = staticmethod(reference.head_weights)
    contrast_rows = staticmethod(distributions.contrast_rows)
    divergences = staticmethod(distributions.divergences)
    mask_rows = staticmethod(distributions.mask_rows)
    edit_residual = staticmethod(residual_tables.edit_residual)
    store_sink_scores = staticmethod(sinks.store_scores)
    settle_sink_tags = staticmethod(sinks.settle_tags)
    find_head_sinks = staticmethod(head_sinks.find_head_sinks)
    settle_prompt_sinks = staticmethod(head_sinks.settle_prompt_sinks)


def _backend(query: torch.Tensor) -> Any:
    return _triton() if query.is_cuda else _Reference


@cache
def _triton() -> Any:
    """Imported late: a machine without a GPU need not have triton."""
    from saccade_kernels.gpu import backend

    return backend


def _tensor(value: Any) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value
