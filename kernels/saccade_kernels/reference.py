"""Plain PyTorch of every op: the specification of the Triton kernels, and the CPU backend.

Arithmetic runs in float32, or in float64 when the inputs are float64. A query row that follows
the identity program gets bit for bit what it gets with no controls at all: every edit multiplies
by an exact 1 or adds an exact 0. A sequence reads no cache slot but its own, so whatever stale
or foreign slots hold, NaN included, cannot reach it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from saccade_kernels.batch import PAGE, AttentionBatch
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, ControlTables, Edit

EMPTY = 1e-30
"""A class with less mass than this counts as empty: dividing by it could overflow float32."""


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
) -> torch.Tensor:
    """Attention of the leading ``num_decodes`` sequences, one query row each.

    Args:
        query: [num_decodes, heads, head_dim].
        scale: factor on the scores, usually head_dim ** -0.5.
        softcap: if positive, scores become ``softcap * tanh(score / softcap)`` before any edit.
        window: if positive, a query sees its last ``window`` keys only.

    Returns:
        [num_decodes, heads, head_dim] in the query's dtype.
    """
    group = _group(batch, 0, batch.num_decodes, key_cache, query.dtype, window)
    return _attend(query, key_cache, value_cache, batch, group, layer, scale, softcap)


def prefill(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
) -> torch.Tensor:
    """Causal attention of the sequences behind the decodes, any number of query rows each.

    Args:
        query: [tokens - num_decodes, heads, head_dim]; the rest as in :func:`decode`.

    Returns:
        [tokens - num_decodes, heads, head_dim] in the query's dtype.
    """
    outputs, first = [query[:0]], 0
    for seq in range(batch.num_decodes, batch.context_lens.numel()):
        group = _group(batch, seq, seq + 1, key_cache, query.dtype, window)
        rows = query[first : first + group.queries]
        outputs.append(_attend(rows, key_cache, value_cache, batch, group, layer, scale, softcap))
        first += group.queries
    return outputs[-1] if len(outputs) <= 2 else torch.cat(outputs)


def edit_scores(
    scores: torch.Tensor,
    controls: ControlTables,
    rows: torch.Tensor,
    tags: torch.Tensor,
    weights: torch.Tensor,
    layer: int,
) -> torch.Tensor:
    """Apply the score edit of each query row's program.

    Args:
        scores: [seqs, heads, queries, keys].
        rows: control row of each query, int [seqs, queries].
        tags: key classes, integers [seqs, keys] below :data:`CLASSES`.
        weights: beta of each key, float32 [seqs, keys].
    """
    seqs, heads, queries, keys = scores.shape

    def per_row(table: torch.Tensor) -> torch.Tensor:
        return _rows(table, rows, layer, scores.dtype).transpose(1, 2)  # [seqs, H, Q, ...]

    # Minus infinity, written to knock a class out, would be NaN times the zeros of the product.
    bias = per_row(controls.bias).clamp(min=torch.finfo(scores.dtype).min)
    per_class = torch.stack([1 + per_row(controls.scale), per_row(controls.absolute), bias], 1)
    per_key = torch.bmm(per_class.view(seqs, -1, CLASSES), _members(tags, scores.dtype))
    scale, absolute, bias = per_key.view(seqs, 3, heads, queries, keys).unbind(1)
    beta = weights[:, None, None, :].to(scores.dtype)
    return (
        scale * scores + absolute * scores.abs() + bias + per_row(controls.weight)[..., None] * beta
    )


def edit_masses(
    attention: torch.Tensor,
    controls: ControlTables,
    rows: torch.Tensor,
    tags: torch.Tensor,
    layer: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the gated mass transform of each query row's program.

    Args:
        attention: softmax weights [seqs, heads, queries, keys]; rows and tags as above.

    Returns:
        The edited weights, and bool [seqs, heads, queries]: the masses of this row changed.
    """
    return _edit_masses(attention, *_mass_tables(controls, rows, slice(layer, layer + 1))[0], tags)


def transform_masses(
    mass: torch.Tensor, controls: ControlTables, rows: torch.Tensor, layer: int
) -> torch.Tensor:
    """Gates, transform and the empty-class rule on class masses [seqs, heads, queries, C]."""
    return _transform(mass, *_mass_tables(controls, rows, slice(layer, layer + 1))[0])


MassTables = tuple[torch.Tensor, torch.Tensor]
"""Transform over gate weights [seqs, Q, H, C + GATES, C], and thresholds [seqs, Q, H, GATES]."""


def _mass_tables(controls: ControlTables, rows: torch.Tensor, layers: slice) -> list[MassTables]:
    """What mass edits need, per layer; all layers at once cost hardly more than one."""

    def pick(table: torch.Tensor) -> torch.Tensor:
        picked = table[:, layers].index_select(0, rows.flatten()).transpose(0, 1)
        return picked.reshape(-1, *rows.shape, *picked.shape[2:])

    matrix = torch.cat([pick(controls.transform), pick(controls.gate_weight)], -2)
    return list(zip(matrix.unbind(), pick(controls.gate_threshold).unbind(), strict=True))


def _edit_masses(
    attention: torch.Tensor, matrix: torch.Tensor, threshold: torch.Tensor, tags: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    seqs, heads, queries, keys = attention.shape
    members = _members(tags, attention.dtype)
    mass = torch.bmm(attention.view(seqs, -1, keys), members.transpose(1, 2))
    before = mass.view(seqs, heads, queries, CLASSES)
    after = _transform(before, matrix, threshold)
    ratio = (after / before).nan_to_num_(1.0)  # 0 / 0: a class without keys
    edited = attention * torch.bmm(ratio.view(seqs, -1, CLASSES), members).view(attention.shape)
    return edited, (after != before).any(-1)


def _transform(mass: torch.Tensor, matrix: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    before = mass.transpose(1, 2)  # [seqs, Q, H, C], as the tables have it
    stacked = matrix.to(mass.dtype).flatten(0, 2)
    product = torch.bmm(stacked, before.reshape(-1, CLASSES, 1)).view(matrix.shape[:-1])
    is_open = (product[..., CLASSES:] >= threshold).all(-1, keepdim=True)
    after = torch.where(is_open, product[..., :CLASSES], before)
    empty = before <= EMPTY
    if bool((after * empty).any()):
        after = _return_masses(before, after, empty)
    return after.transpose(1, 2).contiguous()


def _return_masses(before: torch.Tensor, after: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Take from the empty classes what they were given and share it among the others.

    A row that has nobody left to share with keeps the masses it had. All are [..., C].
    """
    lost = torch.where(empty, after, 0.0).sum(-1, keepdim=True)
    kept = torch.where(empty, 0.0, after).sum(-1, keepdim=True)
    some = kept > EMPTY
    returned = 1 + lost / torch.where(some, kept, torch.inf)
    return torch.where(empty | (~some & (lost > EMPTY)), before, after * returned)


@dataclass(frozen=True)
class _Group:
    """What a step's layers share about all its decodes, or about one prefill."""

    first: int  # the first of its sequences
    queries: int  # query rows of each sequence
    keys: int  # of the longest sequence; a shorter one repeats its last key, masked
    positions: torch.Tensor  # int64 [seqs, keys] in the sequence
    cache_rows: torch.Tensor  # int64 [seqs * kv_heads * keys] into a cache seen as [-1, head_dim]
    mask: torch.Tensor  # [seqs, 1, queries, keys]: 0 where a query may look, else -inf
    padded: torch.Tensor | None  # bool [seqs, 1, 1, 1]: no keys at all; None if all have some
    control_rows: torch.Tensor  # int32 [seqs, queries]
    tag_rows: torch.Tensor  # int32 [seqs]


def _group(
    batch: AttentionBatch,
    first: int,
    last: int,
    key_cache: torch.Tensor,
    dtype: torch.dtype,
    window: int,
) -> _Group:
    """The group of sequences ``first`` to ``last``, made once a step for each kind of layer."""
    work, kv_heads = torch.promote_types(dtype, torch.float32), key_cache.shape[2]
    name = ("group", first, last, work, kv_heads, window)
    if name not in batch.derived:
        start, end = batch.query_starts[[first, last]].tolist()
        queries = (end - start) // max(last - first, 1)
        context = batch.context_lens[first:last, None].long()
        keys = max(int(context.max()), 1)
        key = torch.arange(keys, device=context.device)
        own = torch.minimum(key, (context - 1).clamp(min=0))  # [seqs, keys]
        slots = batch.page_table[first:last].long().gather(1, own // PAGE) * PAGE + own % PAGE
        head = torch.arange(kv_heads, device=context.device)[:, None]
        query = torch.arange(queries, device=context.device) + context - queries  # [seqs, queries]
        visible = key <= query[:, :, None]
        if window > 0:
            visible &= key > query[:, :, None] - window
        mask = torch.zeros(visible.shape, dtype=work, device=context.device)
        padded = (context == 0)[:, :, None, None]
        batch.derived[name] = _Group(
            first=first,
            queries=queries,
            keys=keys,
            positions=own,
            cache_rows=(slots[:, None] * kv_heads + head).flatten(),
            mask=mask.masked_fill_(~visible, -torch.inf)[:, None],
            padded=padded if bool(padded.any()) else None,
            control_rows=batch.control_rows[start:end].view(last - first, queries),
            tag_rows=batch.tag_rows[first:last],
        )
    group = batch.derived[name]
    assert isinstance(group, _Group)
    return group


def _attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    group: _Group,
    layer: int,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """Attention of one group; query and output are [seqs * queries, heads, head_dim]."""
    seqs, heads, edit = group.tag_rows.numel(), query.shape[1], batch.edit(layer)
    scores = _scores(query, key_cache, group, scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if edit:
        controls, tables = batch.tables()
        stored = tables.tags.select(1, layer)[:, : group.keys].index_select(0, group.tag_rows)
        tags = stored.clamp(max=CLASSES - 1)
    if edit & Edit.SCORE:
        beta = tables.weights.index_select(0, group.tag_rows).gather(1, group.positions)
        scores = edit_scores(scores, controls, group.control_rows, tags, beta, layer)
    scores += group.mask
    if group.padded is not None:  # the key it stands on is not its own
        scores = scores.masked_fill_(group.padded, -torch.inf)
    if edit & Edit.HIDE:
        scores = scores.masked_fill_((stored == NEVER_ATTEND)[:, None, None, :], -torch.inf)
    blind = None
    if edit & Edit.HIDE or group.padded is not None:
        blind = scores.amax(-1, keepdim=True) == -torch.inf
    attention = torch.softmax(scores, dim=-1)
    if blind is not None:
        attention = attention.masked_fill_(blind, 0.0)  # softmax over nothing is NaN
    if edit & Edit.MASS:
        matrix, threshold = _step_mass_tables(batch, group, layer)
        attention, moved = _edit_masses(attention, matrix, threshold, tags)
        count = moved.sum(-1, dtype=torch.int32)
        tables.moved.select(1, layer).index_add_(0, group.tag_rows, count)
    value = _gather(value_cache, group).to(attention.dtype)
    output = torch.bmm(attention.view(value.shape[0], -1, group.keys), value)
    output = output.view(seqs, heads, group.queries, -1)
    if group.padded is not None:
        output = output.masked_fill_(group.padded, 0.0)
    output = output.transpose(1, 2)
    if edit & Edit.HEAD:
        gain = _rows(controls.gain, group.control_rows, layer, output.dtype)
        shift = _rows(controls.shift, group.control_rows, layer, output.dtype)
        output = gain[..., None] * output + shift
    return output.reshape(query.shape).to(query.dtype)


def _step_mass_tables(batch: AttentionBatch, group: _Group, layer: int) -> MassTables:
    """One layer's; decodes read all layers' once a step, prefills have too many rows for that."""
    controls, _ = batch.tables()
    if group.queries > 1:
        return _mass_tables(controls, group.control_rows, slice(layer, layer + 1))[0]
    name = ("mass", group.first)
    if name not in batch.derived:
        batch.derived[name] = _mass_tables(controls, group.control_rows, slice(None))
    tables: MassTables = batch.derived[name][layer]
    return tables


def _scores(
    query: torch.Tensor, key_cache: torch.Tensor, group: _Group, scale: float
) -> torch.Tensor:
    """Scaled products of queries and keys, [seqs, heads, queries, keys]."""
    work, (heads, dim) = group.mask.dtype, query.shape[1:]
    key = _gather(key_cache, group).to(work)
    rows = (query.to(work) * scale).view(-1, group.queries, heads, dim).transpose(1, 2)
    # Query heads of one key head are neighbours, so they fold into one matrix product.
    scores = torch.bmm(rows.reshape(key.shape[0], -1, dim), key.transpose(1, 2))
    return scores.view(-1, heads, group.queries, group.keys)


def _gather(cache: torch.Tensor, group: _Group) -> torch.Tensor:
    """What the cache holds for a group, [seqs * kv_heads, keys, head_dim]."""
    dim = cache.shape[-1]
    return cache.view(-1, dim).index_select(0, group.cache_rows).view(-1, group.keys, dim)


def _rows(table: torch.Tensor, rows: torch.Tensor, layer: int, dtype: torch.dtype) -> torch.Tensor:
    """One layer of a control table for each query row, [seqs, queries, heads, ...]."""
    picked = table.select(1, layer).index_select(0, rows.flatten())
    return picked.view(*rows.shape, *picked.shape[1:]).to(dtype)


def _members(tags: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Which class each key belongs to, one-hot: [seqs, CLASSES, keys]."""
    return torch.nn.functional.embedding(tags.long(), _eye(dtype, tags.device)).transpose(1, 2)


@cache
def _eye(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.eye(CLASSES, dtype=dtype, device=device)
