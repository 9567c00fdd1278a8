"""Attention sinks of single heads, found in the attention itself (ACT, arXiv 2406.15765).

A key is a sink of a head if it receives much attention on average over the query rows that can see
it: a_k = 1 / (N - k) sum_{i >= k} A[i, k] > threshold, for the N rows and keys so far. A is the
attention before mass edits.

All that decides lies on the device: the criterion of each sequence, the attention its keys have
received so far, and how many query rows that is the sum of. So finding the classes of a row needs
nothing that the host knows, but which rows ask.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

from saccade_kernels.batch import AttentionBatch
from saccade_kernels.columns_reference import row_scores
from saccade_kernels.controls import EXEMPT_CLASS, SINK_CLASS, ControlShape


class HeadSinkOption(enum.IntFlag):
    """How the criterion of a sequence differs from the usual one."""

    NONE = 0
    RELATIVE = 1  # the threshold is divided by the number of keys
    FIRST_FOUND = 2  # the first sink found is spared instead of the initial key
    EXEMPT_INITIAL = 4  # the initial key has a class of its own
    ROW_ALONE = 8  # a generated row goes by its own attention, not by the mean over all rows


@dataclass(frozen=True)
class HeadSinkTables:
    """By row of the :class:`~saccade_kernels.tables.PerHeadTable`: what finds its sinks.

    A head whose place is negative does not ask. A row that is computed again, after a failed step
    or with its whole sequence, is in the sums once: it is added if as many rows are in them as come
    before it. What a former owner left in ``sums`` is never read.
    """

    thresholds: torch.Tensor  # float32 [rows]
    options: torch.Tensor  # int32 [rows], of HeadSinkOption
    least_rows: torch.Tensor  # int32 [rows]: keys that fewer rows can see are no sinks
    places: torch.Tensor  # int64 [rows, layers, heads]: the first of a head's sums
    counted: torch.Tensor  # int32 [rows, layers, heads]: query rows in the sums
    sums: torch.Tensor  # float32, attention received by key, one head behind another
    arrived: torch.Tensor  # int32 [rows, heads], of the kernel's; 0 between launches

    @classmethod
    def allocate(
        cls, rows: int, shape: ControlShape, room: int, device: torch.device | str = "cpu"
    ) -> HeadSinkTables:
        """Make ``rows`` rows in which no head asks, and ``room`` sums for all of them."""
        sites = (rows, shape.layers, shape.heads)
        return cls(
            thresholds=torch.zeros(rows, dtype=torch.float32, device=device),
            options=torch.zeros(rows, dtype=torch.int32, device=device),
            least_rows=torch.zeros(rows, dtype=torch.int32, device=device),
            places=torch.full(sites, -1, dtype=torch.int64, device=device),
            counted=torch.zeros(sites, dtype=torch.int32, device=device),
            sums=torch.empty(room, dtype=torch.float32, device=device),
            arrived=torch.zeros(rows, shape.heads, dtype=torch.int32, device=device),
        )


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
    """Find the classes of single heads that some decodes are to follow, and write them, in place.

    Args:
        query: [tokens, heads, head_dim], this step's; its keys are already stored.
        scale, softcap, window: as in :func:`saccade_kernels.reference.decode`.
        rows: int32 [n], the decodes that ask, each once; -1: none.
    """
    table = batch.per_head_table()
    for row in rows.tolist():
        own = int(table.rows[batch.tag_rows[row]]) if row >= 0 else 0
        heads = (tables.places[own, layer] >= 0).nonzero().flatten()
        if row < 0 or not len(heads):
            continue
        index = rows.new_tensor([row]).long()
        scores = row_scores(query, key_cache, batch, layer, scale, softcap, window, row, index)
        seen = scores[heads, 0]
        weights = torch.softmax(seen, -1).masked_fill(seen == -torch.inf, 0.0).float()
        keys = weights.shape[1]
        counted = tables.counted[own, layer, heads]
        sums = _sums(tables, own, layer, heads, keys)
        is_new = (counted == keys - 1) | (keys == 1)
        so_far = tables.sums[sums]
        so_far[:, -1] = torch.where(is_new, 0.0, so_far[:, -1])
        so_far += torch.where(is_new[:, None], weights, 0.0)
        tables.sums[sums] = so_far
        tables.counted[own, layer, heads] = torch.where(is_new, keys, counted)
        score, least = mean_received(so_far), int(tables.least_rows[own])
        if int(tables.options[own]) & HeadSinkOption.ROW_ALONE:
            score, least = weights, 0
        table.classes[own, layer, heads, :keys] = _classes(score, least, own, tables)


def settle_prompt_sinks(
    received: torch.Tensor, batch: AttentionBatch, layer: int, tables: HeadSinkTables
) -> None:
    """Find the classes of single heads that whole prompts are to follow, and begin their sums.

    Args:
        received: float32 or wider [seqs, heads, keys]: attention that each key got, summed over the
            rows of its prompt.
        batch: of these sequences, each with all the rows of its prompt.
    """
    table = batch.per_head_table()
    for seq, keys in enumerate(batch.context_lens.tolist()):
        own = int(table.rows[batch.tag_rows[seq]])
        heads = (tables.places[own, layer] >= 0).nonzero().flatten()
        if not len(heads):
            continue
        sums = received[seq, heads, :keys].float()
        tables.sums[_sums(tables, own, layer, heads, keys)] = sums
        tables.counted[own, layer, heads] = keys
        classes = _classes(mean_received(sums), 1, own, tables)
        table.classes[own, layer, heads, :keys] = classes


def mean_received(sums: torch.Tensor) -> torch.Tensor:
    """a_k: what each key got on average from the rows that can see it, [heads, keys].

    Args:
        sums: [heads, keys]; as many rows as keys.
    """
    return sums / _rows_that_see(sums)


def classify(
    score: torch.Tensor, threshold: torch.Tensor | float, options: HeadSinkOption, least: int = 1
) -> torch.Tensor:
    """Classes of keys by their scores: uint8 [heads, keys].

    Args:
        score: [heads, keys]; as many rows as keys, of which N - k can see key k.
        least: keys that fewer rows can see are no sinks.
    """
    if options & HeadSinkOption.RELATIVE:
        threshold = threshold / score.shape[1]
    found = (score > threshold) & (_rows_that_see(score) >= least)
    if options & HeadSinkOption.FIRST_FOUND:
        found &= found.cumsum(1) > 1
    else:
        found[:, 0] = False
    classes = found.to(torch.uint8) * SINK_CLASS
    if options & HeadSinkOption.EXEMPT_INITIAL:
        classes[:, 0] = EXEMPT_CLASS
    return classes


def _rows_that_see(sums: torch.Tensor) -> torch.Tensor:
    return torch.arange(sums.shape[1], 0, -1, device=sums.device)


def _sums(
    tables: HeadSinkTables, own: int, layer: int, heads: torch.Tensor, keys: int
) -> torch.Tensor:
    """Where the sums of some heads lie: int64 [heads, keys]."""
    return tables.places[own, layer, heads, None] + torch.arange(keys, device=heads.device)


def _classes(score: torch.Tensor, least: int, own: int, tables: HeadSinkTables) -> torch.Tensor:
    """:func:`classify` by a row's criterion, but for the number of rows."""
    options = HeadSinkOption(int(tables.options[own]))
    return classify(score, tables.thresholds[own], options, least)
