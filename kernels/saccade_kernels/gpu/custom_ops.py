"""The Triton kernels as PyTorch operators, ``torch.ops.saccade``, for whoever traces a model.

An operator's schema has no place for an :class:`AttentionBatch`, so a batch travels flat: its
tensors, and one list of integers for what only the host knows. Each operator has a fake form, and
says which of its arguments it changes; shapes are the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from saccade_kernels.batch import AttentionBatch, Emission, Prefill, Run
from saccade_kernels.columns_reference import longest_context
from saccade_kernels.controls import Edit
from saccade_kernels.gpu import columns, decode, prefill, saliency, store, streams
from saccade_kernels.gradients import RowGradients, empty_gradients
from saccade_kernels.stream_tables import StreamTables
from saccade_kernels.tables import ControlTables, PartitionTable, TagTable

CONTROLS = tuple(field.name for field in fields(ControlTables))
TAGS = ("tags", "weights", "hides")
PARTITION = tuple(field.name for field in fields(PartitionTable))
STEP = ("slots", "query_starts", "context_lens", "page_table", "control_rows", "tag_rows")


def flatten(batch: AttentionBatch, layer: int) -> tuple[list[Tensor], Tensor | None, list[int]]:
    """A batch for one layer: tensors, the counters that attention adds to, and host numbers."""
    tensors = [getattr(batch, name) for name in STEP]
    moved = None
    if batch.controls is not None and batch.tags is not None:
        tensors += [getattr(batch.controls, name) for name in CONTROLS]
        tensors += [getattr(batch.tags, name) for name in TAGS]
        moved = batch.tags.moved
    if batch.partitioned:
        tensors += [getattr(batch.partition(), name) for name in PARTITION]
    numbers = [batch.num_decodes, batch.max_context, batch.classes, int(batch.edit(layer))]
    if not batch.num_decodes:
        numbers[-1] = 0
    numbers.append(int(batch.partitioned))
    for known in batch.prefills:
        numbers += [known.queries, known.context, len(known.runs)]
        for run in known.runs:
            numbers += [run.rows, run.control_row, int(run.edits[layer]) if run.edits else 0]
    return tensors, moved, numbers


def unflatten(
    tensors: Sequence[Tensor], moved: Tensor | None, numbers: Sequence[int], layer: int
) -> AttentionBatch:
    """The batch again, with this layer's edits only."""
    num_decodes, max_context, classes, edit, partitioned, *rest = numbers
    controls = tags = None
    if moved is not None:
        tables = tensors[len(STEP) :]
        controls = ControlTables(**dict(zip(CONTROLS, tables, strict=False)))
        named = dict(zip(TAGS, tables[len(CONTROLS) :], strict=False))
        own = tables[len(CONTROLS) + len(TAGS) :]
        partition = PartitionTable(**dict(zip(PARTITION, own, strict=True))) if own else None
        tags = TagTable(moved=moved, partition=partition, **named)

    def edits(flags: int) -> tuple[Edit, ...]:
        return (Edit(flags),) * (layer + 1) if flags else ()

    prefills, values = [], iter(rest)
    for queries in values:
        context, count = next(values), next(values)
        runs = [Run(next(values), next(values), edits(next(values))) for _ in range(count)]
        prefills.append(Prefill(queries, context, tuple(runs)))
    step: dict[str, Any] = dict(zip(STEP, tensors, strict=False))
    return AttentionBatch(
        **step,
        num_decodes=num_decodes,
        max_context=max_context,
        edits=edits(edit),
        prefills=tuple(prefills),
        classes=classes,
        partitioned=bool(partitioned),
        controls=controls,
        tags=tags,
    )


def _emission(masses: Tensor | None, lse: Tensor | None) -> Emission | None:
    return None if masses is None or lse is None else Emission(masses, lse)


@custom_op("saccade::store", mutates_args=("key_cache", "value_cache"))
def store_op(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    """See :func:`saccade_kernels.reference.store`."""
    store.store(key, value, key_cache, value_cache, slots)


@custom_op("saccade::decode", mutates_args=("moved", "masses", "lse"))
def decode_op(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    tensors: Sequence[Tensor],
    moved: Tensor | None,
    masses: Tensor | None,
    lse: Tensor | None,
    numbers: Sequence[int],
    layer: int,
    scale: float,
    softcap: float,
    window: int,
) -> Tensor:
    """See :func:`saccade_kernels.reference.decode`."""
    batch = unflatten(tensors, moved, numbers, layer)
    emit = _emission(masses, lse)
    return decode.decode(query, key_cache, value_cache, batch, layer, scale, softcap, window, emit)


@custom_op("saccade::prefill", mutates_args=("moved", "masses", "lse"))
def prefill_op(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    tensors: Sequence[Tensor],
    moved: Tensor | None,
    masses: Tensor | None,
    lse: Tensor | None,
    numbers: Sequence[int],
    layer: int,
    scale: float,
    softcap: float,
    window: int,
) -> Tensor:
    """See :func:`saccade_kernels.reference.prefill`."""
    batch = unflatten(tensors, moved, numbers, layer)
    emit = _emission(masses, lse)
    return prefill.prefill(
        query, key_cache, value_cache, batch, layer, scale, softcap, window, emit
    )


@custom_op("saccade::saliency", mutates_args=())
def saliency_op(
    query: Tensor,
    grad_output: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    tensors: Sequence[Tensor],
    moved: Tensor | None,
    numbers: Sequence[int],
    layer: int,
    scale: float,
    softcap: float,
    window: int,
) -> list[Tensor]:
    """See :func:`saccade_kernels.gradients.saliency`; the fields of its result, in order."""
    batch = unflatten(tensors, moved, numbers, layer)
    made = saliency.saliency(
        query, grad_output, key_cache, value_cache, batch, layer, scale, softcap, window
    )
    return [getattr(made, field.name) for field in fields(RowGradients)]


@custom_op("saccade::column_sums", mutates_args=())
def column_sums_op(
    query: Tensor,
    key_cache: Tensor,
    tensors: Sequence[Tensor],
    moved: Tensor | None,
    numbers: Sequence[int],
    layer: int,
    scale: float,
    softcap: float,
    window: int,
    lse: Tensor,
    first: Tensor,
) -> Tensor:
    """See :func:`saccade_kernels.columns_reference.column_sums`."""
    batch = unflatten(tensors, moved, numbers, layer)
    return columns.column_sums(query, key_cache, batch, layer, scale, softcap, window, lse, first)


@custom_op("saccade::attention_rows", mutates_args=())
def attention_rows_op(
    query: Tensor,
    key_cache: Tensor,
    tensors: Sequence[Tensor],
    moved: Tensor | None,
    numbers: Sequence[int],
    layer: int,
    scale: float,
    softcap: float,
    window: int,
    lse: Tensor,
    rows: Tensor,
) -> Tensor:
    """See :func:`saccade_kernels.columns_reference.attention_rows`."""
    batch = unflatten(tensors, moved, numbers, layer)
    return columns.attention_rows(query, key_cache, batch, layer, scale, softcap, window, lse, rows)


@custom_op("saccade::stream", mutates_args=())
def stream_op(hidden: Tensor, rows: Tensor, tables: Sequence[Tensor], layer: int) -> Tensor:
    """See :func:`saccade_kernels.stream_tables.stream`; ``tables`` are the fields, in order."""
    return streams.stream(hidden, rows, StreamTables(*tables), layer)


@store_op.register_fake
def _(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    return None


@decode_op.register_fake
def _(query: Tensor, *arguments: object) -> Tensor:
    return query.new_empty(query.shape)


@prefill_op.register_fake
def _(query: Tensor, *arguments: object) -> Tensor:
    return query.new_empty(query.shape)


@stream_op.register_fake
def _(hidden: Tensor, *arguments: object) -> Tensor:
    return hidden.new_empty(hidden.shape)


@saliency_op.register_fake
def _(
    query: Tensor,
    grad_output: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    tensors: Sequence[Tensor],
    moved: Tensor | None,
    numbers: Sequence[int],
    *arguments: object,
) -> list[Tensor]:
    max_context = numbers[1]
    made = empty_gradients(grad_output, key_cache.shape[2], max_context, torch.float32)
    return [getattr(made, field.name) for field in fields(RowGradients)]


@column_sums_op.register_fake
def _(
    query: Tensor,
    key_cache: Tensor,
    tensors: Sequence[Tensor],
    moved: Tensor | None,
    numbers: Sequence[int],
    layer: int,
    *arguments: object,
) -> Tensor:
    batch = unflatten(tensors, moved, numbers, layer)
    shape = (batch.context_lens.shape[0], query.shape[1], longest_context(batch))
    return query.new_empty(shape, dtype=torch.float32)


@attention_rows_op.register_fake
def _(
    query: Tensor,
    key_cache: Tensor,
    tensors: Sequence[Tensor],
    moved: Tensor | None,
    numbers: Sequence[int],
    layer: int,
    scale: float,
    softcap: float,
    window: int,
    lse: Tensor,
    rows: Tensor,
) -> Tensor:
    batch = unflatten(tensors, moved, numbers, layer)
    shape = (rows.shape[0], query.shape[1], longest_context(batch))
    return query.new_empty(shape, dtype=torch.float32)
