"""Plain PyTorch of every op: the specification of the Triton kernels, and the CPU backend.

Arithmetic runs in float32, or in float64 when the inputs are float64. A query row that follows
the identity program gets bit for bit what it gets with no controls at all: every edit multiplies
by an exact 1 or adds an exact 0. A sequence reads no cache slot but its own, so whatever stale
or foreign slots hold, NaN included, cannot reach it.

Of a batch that is ``invariant`` the products are those of :mod:`~saccade_kernels.fixed_tiles`: a
row gets the same bits in every batch, chunk and group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.columns_reference import longest_context
from saccade_kernels.controls import KEY_WEIGHTS, NEVER_ATTEND, Edit
from saccade_kernels.edits import (
    LayerTables,
    Product,
    apply_head_masses,
    apply_masses,
    apply_scores,
    class_members,
    head_masses,
    head_members,
    mass_tables,
    score_tables,
)
from saccade_kernels.fixed_tiles import bmm_keys, bmm_values
from saccade_kernels.groups import Group, gather, group_of
from saccade_kernels.tables import ControlTables


def store(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Write this step's keys and values into the paged cache, in place.

    Args:
        key: [tokens, kv_heads, head_dim]; ``value`` likewise.
        key_cache: [pages, PAGE, kv_heads, head_dim]; ``value_cache`` likewise.
        slots: int64 [tokens].
    """
    key_cache.view(-1, *key_cache.shape[2:]).index_copy_(0, slots, key.to(key_cache.dtype))
    value_cache.view(-1, *value_cache.shape[2:]).index_copy_(0, slots, value.to(value_cache.dtype))


def decode(
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
    """Attention of the leading ``num_decodes`` sequences, one query row each.

    Args:
        query: [num_decodes, heads, head_dim].
        scale: factor on the scores, usually head_dim ** -0.5.
        softcap: if positive, scores become ``softcap * tanh(score / softcap)`` before any edit.
        window: if positive, a query sees its last ``window`` keys only.
        emit: if given, receives class masses and normalisers; its rows are the query's.

    Returns:
        [num_decodes, heads, head_dim] in the query's dtype.
    """
    context = max(batch.max_context, 1)
    group = group_of(batch, (0, batch.num_decodes), (1, context), key_cache, query.dtype, window)
    return _attend(query, key_cache, value_cache, batch, group, layer, scale, softcap, emit)


def prefill(
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
    """Causal attention of the sequences behind the decodes, any number of query rows each.

    Args:
        query: [tokens - num_decodes, heads, head_dim]; the rest as in :func:`decode`.

    Returns:
        [tokens - num_decodes, heads, head_dim] in the query's dtype.
    """
    outputs, first = [query[:0]], 0
    for seq, known in enumerate(batch.prefills, batch.num_decodes):
        sizes = (known.queries, max(known.context, 1))
        group = group_of(batch, (seq, seq + 1), sizes, key_cache, query.dtype, window)
        rows = slice(first, first + known.queries)
        part = None if emit is None else emit.rows(rows)
        arguments = (key_cache, value_cache, batch, group, layer, scale, softcap, part)
        outputs.append(_attend(query[rows], *arguments))
        first += known.queries
    return outputs[-1] if len(outputs) <= 2 else torch.cat(outputs)


def invariant_attention(
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
    """Attention of all rows of a batch that is ``invariant``, decodes and prefills.

    Args:
        query: [tokens, heads, head_dim]; the rest as in :func:`decode`.

    Returns:
        [tokens, heads, head_dim] in the query's dtype.
    """
    arguments = (key_cache, value_cache, batch, layer, scale, softcap, window)
    parts = []
    for attend, rows in (
        (decode, slice(0, batch.num_decodes)),
        (prefill, slice(batch.num_decodes, len(query))),
    ):
        if rows.start < rows.stop:
            part = None if emit is None else emit.rows(rows)
            parts.append(attend(query[rows], *arguments, part))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
    """A', the weights that heads multiply values with: behind score edits and mass edits.

    No row counts as moved by it.

    Args:
        query: [tokens, heads, head_dim], this step's, whose keys and values are stored already.
        batch: with control and tag tables, even if it edits nothing.

    Returns:
        [tokens, heads, longest context of the batch], float32 (float64 for a float64 query), 0 for
        keys that a row does not see; rows of padded sequences are zeros.
    """
    work = torch.promote_types(query.dtype, torch.float32)
    found = query.new_zeros(*query.shape[:2], longest_context(batch), dtype=work)
    groups = [(0, batch.num_decodes, 1, max(batch.max_context, 1))] if batch.num_decodes else []
    groups += [
        (seq, seq + 1, known.queries, max(known.context, 1))
        for seq, known in enumerate(batch.prefills, batch.num_decodes)
    ]
    first = 0
    for *members, queries, context in groups:
        group = group_of(batch, members, (queries, context), key_cache, query.dtype, window)
        last = first + group.tag_rows.numel() * queries
        arguments = (key_cache, batch, group, layer, scale, softcap, None)
        weights = _weigh(query[first:last], *arguments)[0].transpose(1, 2).flatten(0, 1)
        found[first:last, :, :context] = weights[..., :context]
        first = last
    return found


# Plain integers: an enum's operators cost as much as a small tensor operation.
SCORE, MASS, HEAD, HIDE = (flag.value for flag in (Edit.SCORE, Edit.MASS, Edit.HEAD, Edit.HIDE))


def _attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    group: Group,
    layer: int,
    scale: float,
    softcap: float,
    emit: Emission | None,
) -> torch.Tensor:
    """Attention of one group; query and output are [seqs * queries, heads, head_dim]."""
    seqs, heads = group.tag_rows.numel(), query.shape[1]
    attention, moved = _weigh(query, key_cache, batch, group, layer, scale, softcap, emit)
    if moved is not None:
        count = moved.sum(-1, dtype=torch.int32)
        batch.tables()[1].moved.select(1, layer).index_add_(0, group.tag_rows, count)
    value = gather(value_cache, group).to(attention.dtype)
    sum_values = bmm_values if batch.invariant else torch.bmm
    output = sum_values(attention.view(value.shape[0], -1, group.keys), value)
    output = output.view(seqs, heads, group.queries, -1)
    if group.padded is not None:
        output = output.masked_fill_(group.padded, 0.0)
    output = output.transpose(1, 2)
    if int(batch.edit(layer, group.first)) & HEAD:
        controls, rows = batch.tables()[0], group.control_rows
        gain = controls.gain.select(1, layer)[rows].to(output.dtype)
        output = gain[..., None] * output + controls.shift.select(1, layer)[rows].to(output.dtype)
    return output.reshape(query.shape).to(query.dtype)


def _weigh(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    batch: AttentionBatch,
    group: Group,
    layer: int,
    scale: float,
    softcap: float,
    emit: Emission | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A' of one group, [seqs, heads, queries, keys]; and if masses are edited, whose moved."""
    seqs, moved = group.tag_rows.numel(), None
    edit = int(batch.edit(layer, group.first))
    per_key = bmm_keys if batch.invariant else torch.bmm
    scores = _scores(query, key_cache, group, scale, per_key)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if edit or emit is not None:
        _, tables = batch.tables()
        tags = tables.tags.select(1, layer)[:, : group.keys].index_select(0, group.tag_rows)
        if tags.shape[1] < group.keys:  # whole pages may be longer than any sequence
            tags = functional.pad(tags, (0, group.keys - tags.shape[1]))
    if emit is not None or edit & (SCORE | MASS):
        members = class_members(tags, scores.dtype)
    if edit & SCORE:
        per_class, weights = _step_tables(score_tables, batch, group, layer)
        betas = _step_betas(batch, group)
        scores = apply_scores(scores, per_class, weights, members, betas, per_key)
    scores += group.mask
    if group.padded is not None:  # the key it stands on is not its own
        scores = scores.masked_fill_(group.padded, -torch.inf)
    if edit & HIDE:
        scores = scores.masked_fill_((tags == NEVER_ATTEND)[:, None, None, :], -torch.inf)
    blind = None
    if edit & HIDE or group.padded is not None:
        blind = scores.amax(-1, keepdim=True) == -torch.inf
    attention = torch.softmax(scores, dim=-1)
    if blind is not None:
        attention = attention.masked_fill_(blind, 0.0)  # softmax over nothing is NaN
    own = None
    if batch.per_head_classes and (emit is not None or edit & MASS):
        own = _per_head_classes(batch, group, tags, layer, scores.dtype)
    sum_classes = bmm_values if batch.invariant else torch.bmm
    if emit is not None:
        _emit(emit, scores, attention, members, own, sum_classes)
    if edit & MASS:
        matrix, threshold = _step_tables(mass_tables, batch, group, layer)
        before = attention
        attention, moved = apply_masses(before, matrix, threshold, members, sum_classes)
        if own is not None:
            which, by_head = own
            each = len(matrix) // seqs
            rows = torch.arange(len(matrix), device=which.device).view(seqs, each)[which].flatten()
            tables_of = (matrix[rows], threshold[rows])
            edited = apply_head_masses(before[which], *tables_of, by_head, sum_classes)
            attention[which], moved[which] = edited
    return attention, moved


OwnClasses = tuple[torch.Tensor, torch.Tensor]
"""Which sequences of a group have heads with classes of their own, int64 [n]; and the classes of
their keys in every head, one-hot [n, heads, CLASSES, keys]."""


def _per_head_classes(
    batch: AttentionBatch,
    group: Group,
    tags: torch.Tensor,
    layer: int,
    dtype: torch.dtype,
) -> OwnClasses | None:
    """Of the sequences that list heads of this layer; None if no sequence does.

    Sequences that are left out are computed by their tags, as if they were alone.
    """
    per_head = batch.per_head_table()
    rows = per_head.rows[group.tag_rows].long()
    which = per_head.heads[rows, layer].any(-1).nonzero().flatten()
    if not which.numel():
        return None
    return which, head_members(per_head, group.tag_rows[which], tags[which], layer, dtype)


def _emit(
    emit: Emission,
    scores: torch.Tensor,
    attention: torch.Tensor,
    members: torch.Tensor,
    own: OwnClasses | None,
    sum_classes: Product,
) -> None:
    """Write class masses and normalisers; scores are [seqs, heads, queries, keys]."""
    seqs, heads, queries, keys = scores.shape
    masses = sum_classes(attention.view(seqs, -1, keys), members.transpose(1, 2))
    masses = masses.view(seqs, heads, queries, -1)
    if own is not None:
        which, by_head = own
        masses[which] = head_masses(attention[which], by_head, sum_classes)
    masses = masses.transpose(1, 2)
    emit.masses.copy_(masses.reshape(emit.masses.shape))
    emit.lse.copy_(scores.logsumexp(-1).transpose(1, 2).reshape(emit.lse.shape))


def _step_tables(
    build: Callable[[ControlTables, torch.Tensor, slice], list[LayerTables]],
    batch: AttentionBatch,
    group: Group,
    layer: int,
) -> LayerTables:
    """One layer's; decodes read all layers' once a step, prefills have too many rows for that."""
    controls, _ = batch.tables()
    if group.queries > 1:
        return build(controls, group.control_rows, slice(layer, layer + 1))[0]
    name = (build, group.first)
    if name not in batch.derived:
        batch.derived[name] = build(controls, group.control_rows, slice(None))
    tables: LayerTables = batch.derived[name][layer]
    return tables


def _step_betas(batch: AttentionBatch, group: Group) -> torch.Tensor:
    """Betas of a group's keys, float32 [seqs, KEY_WEIGHTS, keys], for all layers of a step."""
    name = (_step_betas, group.first)
    if name not in batch.derived:
        _, tables = batch.tables()
        slot = torch.arange(KEY_WEIGHTS, device=group.positions.device)[:, None]
        rows = group.tag_rows.long()[:, None, None]
        batch.derived[name] = tables.weights[rows, slot, group.positions[:, None]]
    betas: torch.Tensor = batch.derived[name]
    return betas


def _scores(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    group: Group,
    scale: float,
    product: Product,
) -> torch.Tensor:
    """Scaled products of queries and keys, [seqs, heads, queries, keys]."""
    work, (heads, dim) = group.mask.dtype, query.shape[1:]
    key = gather(key_cache, group).to(work)
    rows = (query.to(work) * scale).view(-1, group.queries, heads, dim).transpose(1, 2)
    # Query heads of one key head are neighbours, so they fold into one matrix product.
    scores = product(rows.reshape(key.shape[0], -1, dim), key.transpose(1, 2))
    return scores.view(-1, heads, group.queries, group.keys)
