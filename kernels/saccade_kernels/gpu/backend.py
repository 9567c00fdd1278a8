"""The Triton kernels as ops.py calls them: directly, or as operators where somebody traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from saccade_kernels import gradients, layers
from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.gpu import columns, custom_ops
from saccade_kernels.gpu import decode as decode_kernels
from saccade_kernels.gpu import prefill as prefill_kernels
from saccade_kernels.gpu import saliency as saliency_kernels
from saccade_kernels.gpu import store as store_kernels
from saccade_kernels.gpu import streams as stream_kernels
from saccade_kernels.layers import Heads, Rotation
from saccade_kernels.stream_tables import StreamTables

Function = Callable[..., Any]


def _either(direct: Function, traced: Function) -> Function:
    """``direct``, but ``traced`` while a graph is recorded. Arguments are the reference's."""

    def call(*arguments: Any) -> Any:
        chosen = traced if torch.compiler.is_compiling() else direct
        return chosen(*arguments)

    return call


def _attention(op: Function) -> Function:
    """Decode or prefill as an operator."""

    def call(
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        batch: AttentionBatch,
        layer: int,
        scale: float,
        softcap: float = 0.0,
        window: int = 0,
        emit: Emission | None = None,
    ) -> Any:
        tensors, moved, numbers = custom_ops.flatten(batch, layer)
        emitted = (None, None) if emit is None else (emit.masses, emit.lse)
        last = (layer, scale, softcap, window)
        return op(query, key_cache, value_cache, tensors, moved, *emitted, numbers, *last)

    return call


def _measure(op: Function, tensors: int) -> Function:
    """An operator that emits nothing; its batch is behind so many ``tensors``."""

    def call(*arguments: Any) -> Any:
        batch, layer = arguments[tensors : tensors + 2]
        flat = custom_ops.flatten(batch, layer)
        return op(*arguments[:tensors], *flat, *arguments[tensors + 1 :])

    return call


def _saliency(*arguments: Any) -> gradients.RowGradients:
    return gradients.RowGradients(*_measure(custom_ops.saliency_op, 4)(*arguments))


def _stream(
    hidden: torch.Tensor, rows: torch.Tensor, tables: StreamTables, layer: int
) -> torch.Tensor:
    flat = [getattr(tables, field.name) for field in fields(tables)]
    edited: torch.Tensor = custom_ops.stream_op(hidden, rows, flat, layer)
    return edited


store = _either(store_kernels.store, custom_ops.store_op)
decode = _either(decode_kernels.decode, _attention(custom_ops.decode_op))
prefill = _either(prefill_kernels.prefill, _attention(custom_ops.prefill_op))
saliency = _either(saliency_kernels.saliency, _saliency)
column_sums = _either(columns.column_sums, _measure(custom_ops.column_sums_op, 2))
attention_rows = _either(columns.attention_rows, _measure(custom_ops.attention_rows_op, 2))
stream = _either(stream_kernels.stream, _stream)

# A layer's small steps: PyTorch's operations, until kernels take their places.
rms_norm = layers.rms_norm
add_norm = layers.add_norm
gate = layers.gate


def norm_rope_store(
    merged: torch.Tensor,
    heads: Heads,
    rotation: Rotation,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """See :func:`saccade_kernels.layers.norm_rope_store`; only what it stores is a kernel."""
    query, key, value = layers.norm_rope(merged, heads, rotation)
    store(key, value, key_cache, value_cache, slots)
    return query
