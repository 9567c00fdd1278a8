"""Plain PyTorch of what columns.py measures: attention rows, and their sums over query rows.

Both are A, the weights after score edits and before mass and head edits, and both are made from
the normalisers that attention emitted, so nothing is normalised twice. Arithmetic runs in
float32, or in float64 when the query is float64.
"""

from __future__ import annotations

import torch

from saccade_kernels.batch import PAGE, AttentionBatch
from saccade_kernels.controls import NEVER_ATTEND, Edit
from saccade_kernels.edits import edit_scores


def longest_context(batch: AttentionBatch) -> int:
    """Most keys of any sequence of the batch, known on the host."""
    return max([batch.max_context, *(prefill.context for prefill in batch.prefills)])


def score_edits(batch: AttentionBatch, layer: int) -> Edit:
    """What of a score edit some query row of the batch makes in ``layer``."""
    edit = batch.edit(layer) if batch.num_decodes else Edit.NONE
    for prefill in batch.prefills:
        edit |= prefill.edit(layer)
    return edit & (Edit.SCORE | Edit.HIDE)


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
    """Attention that each key gets, summed over query rows, before mass and head edits.

    Chunks of a prompt add up: a row counts in the step that computes it.

    Args:
        query: [tokens, heads, head_dim], this step's; its keys are already stored.
        scale, softcap, window: as in :func:`saccade_kernels.reference.decode`.
        lse: float32 [tokens, heads], as in :class:`saccade_kernels.batch.Emission`.
        first: int32 [seqs]; rows at a position below it do not count.

    Returns:
        [seqs, heads, longest context of the batch], float32 (float64 for a float64 query).
    """
    work = torch.promote_types(query.dtype, torch.float32)
    starts, contexts = batch.query_starts.tolist(), batch.context_lens.tolist()
    shape = (len(contexts), query.shape[1], longest_context(batch))
    sums = query.new_zeros(shape, dtype=work)
    for seq, (context, least) in enumerate(zip(contexts, first.tolist(), strict=True)):
        past = context - (starts[seq + 1] - starts[seq])
        rows = torch.arange(max(least, past, 0), max(least, context)) - past + starts[seq]
        if len(rows):
            arguments = (query, key_cache, batch, layer, scale, softcap, window, lse)
            sums[seq, :, :context] = _weights(*arguments, seq, rows.to(query.device)).sum(1)
    return sums


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
    """Attention of some query rows, before mass and head edits.

    Args:
        rows: int32 [n], indices into ``query``, in any order; the rest as in :func:`column_sums`.

    Returns:
        [n, heads, longest context of the batch], float32 (float64 for a float64 query); rows of
        padded sequences are zeros.
    """
    work = torch.promote_types(query.dtype, torch.float32)
    found = query.new_zeros(len(rows), query.shape[1], longest_context(batch), dtype=work)
    sequences = sequence_of(batch, rows).tolist()
    for i, seq in enumerate(sequences):
        context = int(batch.context_lens[seq])
        arguments = (query, key_cache, batch, layer, scale, softcap, window, lse)
        found[i, :, :context] = _weights(*arguments, seq, rows[i : i + 1].long())[:, 0]
    return found


def sequence_of(batch: AttentionBatch, rows: torch.Tensor) -> torch.Tensor:
    """The sequence of each query row, int32."""
    return torch.searchsorted(batch.query_starts, rows, right=True, out_int32=True) - 1


def row_scores(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float,
    window: int,
    seq: int,
    rows: torch.Tensor,
) -> torch.Tensor:
    """Edited scores of query rows of one sequence, [heads, rows, context]; -inf: out of sight.

    Args:
        rows: int64 [n], indices into ``query``; the rest as in :func:`column_sums`.
    """
    work, heads = torch.promote_types(query.dtype, torch.float32), query.shape[1]
    context = int(batch.context_lens[seq])
    own = torch.arange(context, device=query.device)
    slots = batch.page_table[seq, own // PAGE].long() * PAGE + own % PAGE
    key = key_cache.flatten(0, 1)[slots].to(work)
    key = key.repeat_interleave(heads // key_cache.shape[2], 1)  # [context, heads, head_dim]
    scores = torch.einsum("qhd,khd->hqk", query[rows].to(work), key) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    position = (rows - batch.query_starts[seq + 1] + context)[:, None]
    visible = own <= position
    if window > 0:
        visible &= own > position - window
    if score_edits(batch, layer):
        controls, tables = batch.tables()
        tags = tables.tags[batch.tag_rows[seq], layer, :context]
        betas = tables.weights[batch.tag_rows[seq], :, :context]
        control_rows = batch.control_rows[rows]
        edited = (controls, control_rows[None], tags[None], betas[None], layer)
        scores = edit_scores(scores[None], *edited)[0]
        visible = visible & (tags != NEVER_ATTEND)
    return scores.masked_fill(~visible, -torch.inf)


def _weights(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float,
    window: int,
    lse: torch.Tensor,
    seq: int,
    rows: torch.Tensor,
) -> torch.Tensor:
    """A of query rows of one sequence, [heads, rows, context]."""
    scores = row_scores(query, key_cache, batch, layer, scale, softcap, window, seq, rows)
    weights = torch.exp(scores - lse[rows].T[..., None].to(scores.dtype))
    return torch.where(scores == -torch.inf, 0.0, weights)
