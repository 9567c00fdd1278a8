"""Plain PyTorch of every op: the specification of the Triton kernels, and the CPU backend.

Arithmetic runs in float32, or in float64 when the inputs are float64. A query row that follows
the identity program gets bit for bit what it gets with no controls at all: every edit multiplies
by an exact 1 or adds an exact 0.
"""

from __future__ import annotations

import torch

from saccade_kernels.batch import PAGE, AttentionBatch
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, ControlTables, Edit


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
    key_cache.view(-1, *key_cache.shape[2:])[slots] = key.to(key_cache.dtype)
    value_cache.view(-1, *value_cache.shape[2:])[slots] = value.to(value_cache.dtype)


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
    seqs = batch.num_decodes
    pages = batch.page_table[:seqs]
    span = _span(batch)
    key, value = _gather(key_cache, pages, span), _gather(value_cache, pages, span)
    visible = _decode_mask(batch, span, window)
    output = _attend(
        query[:, None],
        key,
        value,
        visible,
        batch,
        batch.control_rows[:seqs, None],
        batch.tag_rows[:seqs],
        layer,
        scale,
        softcap,
    )
    return output[:, 0]


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
    starts = batch.query_starts.tolist()
    contexts = batch.context_lens.tolist()
    output = torch.empty_like(query)
    for seq in range(batch.num_decodes, len(contexts)):
        first, last, context = starts[seq], starts[seq + 1], contexts[seq]
        rows = slice(first - batch.num_decodes, last - batch.num_decodes)
        pages = batch.page_table[seq : seq + 1, : -(-context // PAGE)]
        output[rows] = _attend(
            query[rows][None],
            _gather(key_cache, pages, context),
            _gather(value_cache, pages, context),
            _causal_mask(last - first, context, window, query.device),
            batch,
            batch.control_rows[None, first:last],
            batch.tag_rows[seq : seq + 1],
            layer,
            scale,
            softcap,
        )[0]
    return output


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
        tags: key classes, int64 [seqs, keys], values below :data:`CLASSES`.
        weights: beta of each key, float32 [seqs, keys].
    """
    index = tags[:, None, None, :].expand(scores.shape)

    def by_key(table: torch.Tensor) -> torch.Tensor:
        per_class = table[rows, layer].transpose(1, 2).to(scores.dtype)  # [seqs, H, Q, C]
        return per_class.gather(-1, index)

    per_head = controls.weight[rows, layer].transpose(1, 2)[..., None].to(scores.dtype)
    return (
        (1 + by_key(controls.scale)) * scores
        + by_key(controls.absolute) * scores.abs()
        + by_key(controls.bias)
        + per_head * weights[:, None, None, :].to(scores.dtype)
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
    members = torch.nn.functional.one_hot(tags, CLASSES).to(attention.dtype)  # [seqs, K, C]
    mass = attention @ members[:, None]  # [seqs, H, Q, C]
    target = transform_masses(mass, controls, rows, layer)
    live = mass > 0
    ratio = torch.where(live, target / mass, torch.ones_like(mass))
    moved = controls.moves[rows, layer].transpose(1, 2) & (target != mass).any(-1)
    index = tags[:, None, None, :].expand(attention.shape)
    return attention * ratio.gather(-1, index), moved


def transform_masses(
    mass: torch.Tensor, controls: ControlTables, rows: torch.Tensor, layer: int
) -> torch.Tensor:
    """Gates, transform and the empty-class rule on class masses [seqs, heads, queries, C]."""

    def table(values: torch.Tensor) -> torch.Tensor:
        return values[rows, layer].transpose(1, 2).to(mass.dtype)  # [seqs, H, Q, ...]

    gates = (table(controls.gate_weight) @ mass[..., None]).squeeze(-1)
    is_open = (gates >= table(controls.gate_threshold)).all(-1, keepdim=True)
    target = (table(controls.transform) @ mass[..., None]).squeeze(-1)
    target = torch.where(is_open, target, mass)
    live = mass > 0
    kept = (target * live).sum(-1, keepdim=True)
    lost = (target * ~live).sum(-1, keepdim=True)
    returned = 1 + lost / torch.where(kept > 0, kept, torch.ones_like(kept))
    return torch.where(live, target * returned, torch.zeros_like(target))


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    batch: AttentionBatch,
    rows: torch.Tensor,
    tag_rows: torch.Tensor,
    layer: int,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """query [seqs, Q, H, D], key and value [seqs, Hkv, K, D], visible bool [seqs | 1, Q, K]."""
    seqs, queries, heads, dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    work = torch.promote_types(query.dtype, torch.float32)
    edit = batch.edit(layer)
    # Query heads of one key head are neighbours, so they fold into one matrix product.
    folded = query.to(work).transpose(1, 2).reshape(seqs, kv_heads, -1, dim)
    scores = (folded @ key.to(work).transpose(-1, -2)).view(seqs, heads, queries, keys) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    tags = None
    if edit and batch.tags is not None:
        stored = batch.tags.tags[tag_rows, layer, :keys]
        if edit & Edit.HIDE:
            visible = visible & (stored != NEVER_ATTEND)[:, None, :]
        tags = stored.clamp(max=CLASSES - 1).long()
        if edit & Edit.SCORE and batch.controls is not None:
            beta = batch.tags.weights[tag_rows, :keys]
            scores = edit_scores(scores, batch.controls, rows, tags, beta, layer)
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    attention = torch.softmax(scores, dim=-1)
    blind = ~visible.any(-1)[:, None, :, None]  # softmax over nothing is NaN; such a row gives 0
    attention = attention.masked_fill(blind, 0.0)
    if edit & Edit.MASS and batch.controls is not None and batch.tags is not None:
        assert tags is not None
        attention, moved = edit_masses(attention, batch.controls, rows, tags, layer)
        count = moved.sum(-1, dtype=torch.int32)
        batch.tags.moved[:, layer].index_add_(0, tag_rows.long(), count)
    folded = attention.reshape(seqs, kv_heads, -1, keys)
    output = (folded @ value.to(work)).view(seqs, heads, queries, dim).transpose(1, 2)
    if edit & Edit.HEAD and batch.controls is not None:
        gain = batch.controls.gain[rows, layer].to(work)[..., None]
        output = gain * output + batch.controls.shift[rows, layer].to(work)
    return output.to(query.dtype)


def _gather(cache: torch.Tensor, pages: torch.Tensor, span: int) -> torch.Tensor:
    """Collect cached [seqs, kv_heads, span, head_dim] in sequence order."""
    seqs = pages.shape[0]
    rows = cache[pages].view(seqs, -1, *cache.shape[2:])[:, :span]
    return rows.transpose(1, 2)


def _span(batch: AttentionBatch) -> int:
    """Keys to gather for the decodes; prefills of the same step may be longer."""
    if "span" not in batch.derived:
        batch.derived["span"] = batch.context_lens[: batch.num_decodes].amax()
    return int(batch.derived["span"])


def _decode_mask(batch: AttentionBatch, span: int, window: int) -> torch.Tensor:
    """bool [num_decodes, 1, span], made once a step."""
    name = f"decode_mask_{window}"
    if name not in batch.derived:
        position = torch.arange(span, device=batch.context_lens.device)
        context = batch.context_lens[: batch.num_decodes, None]
        visible = position < context
        if window > 0:
            visible &= position >= context - window
        batch.derived[name] = visible[:, None]
    return batch.derived[name]


def _causal_mask(queries: int, context: int, window: int, device: torch.device) -> torch.Tensor:
    """bool [1, queries, context]; the last query stands at the last key."""
    key = torch.arange(context, device=device)
    row = torch.arange(context - queries, context, device=device)[:, None]
    visible = key <= row
    if window > 0:
        visible = visible & (key > row - window)
    return visible[None]
