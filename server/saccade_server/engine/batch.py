"""Pack the chunks of a step into the tensors a forward pass takes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_kernels.batch import PAGE, AttentionBatch, LayerEdits, Prefill, Run
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.tables import DeviceTables
from saccade_server.engine.transfer import Uploader
from saccade_server.models.residual import ResidualStep

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One packed step. T tokens in all, chunks in order, single tokens first.

    ``sources`` says where the tokens are that the host does not know: their rows in the tokens
    drawn by the step before, -1 for known ones; None if all are known.
    """

    chunks: tuple[Chunk, ...]
    starts: tuple[int, ...]  # first row of each chunk
    tokens: torch.Tensor  # int64 [T]
    sources: torch.Tensor | None  # int64 [T]
    positions: torch.Tensor  # int64 [axes, T]
    sampled: torch.Tensor  # int64: last row of each chunk that samples
    attention: AttentionBatch
    residuals: ResidualStep | None


@dataclass(frozen=True)
class PromptPositions:
    """Position ids of a prompt, int64 [axes, prompt_length]; later ones are index + delta."""

    table: Ints
    delta: int

    def at(self, index: int) -> list[int]:
        """Position of one row on each axis."""
        axes, known = self.table.shape
        found: list[int] = self.table[:, index].tolist() if index < known else []
        return found or [index + self.delta] * axes

    def slice(self, start: int, end: int) -> Ints:
        """Positions of rows ``start`` to ``end``: int64 [axes, end - start]."""
        known = self.table.shape[1]
        if end <= known:
            return self.table[:, start:end]
        axes = self.table.shape[0]
        later = np.arange(max(start, known), end, dtype=np.int64) + self.delta
        later = np.broadcast_to(later, (axes, later.size))
        return np.concatenate([self.table[:, start:known], later], axis=1)


def pack(
    chunks: Batch[Chunk],
    positions: Batch[PromptPositions],
    tables: DeviceTables,
    upload: Uploader,
    drawn: Mapping[Sequence, int],
) -> Step:
    """Build the step's tensors.

    Args:
        positions: go with ``chunks``.
        drawn: rows of the sequences whose last tokens the step before has drawn.
    """
    decodes = sum(1 for chunk in chunks if chunk.length == 1)
    starts = _starts(chunks)
    last = [end - 1 for c, end in zip(chunks, starts[1:], strict=True) if c.samples]
    attention, (tokens, at, sampled) = attention_of(
        chunks,
        tables,
        upload,
        _tokens(chunks, decodes),
        _positions(chunks, positions, decodes),
        np.array(last, dtype=np.int64),
    )
    rows = {
        row for chunk in chunks for row, _ in chunk.sequence.control_runs(chunk.start, chunk.end)
    }
    return Step(
        chunks=tuple(chunks),
        starts=tuple(starts[:-1].tolist()),
        tokens=tokens,
        sources=_sources(chunks, upload, drawn, int(starts[-1])),
        positions=at,
        sampled=sampled,
        attention=attention,
        residuals=tables.residual_step(rows),
    )


def attention_of(
    chunks: Batch[Chunk], tables: DeviceTables, upload: Uploader, *more: NDArray[Any]
) -> tuple[AttentionBatch, list[torch.Tensor]]:
    """The rows of chunks, single tokens first, as a batch; their keys need not be new.

    Args:
        more: arrays that are uploaded with the batch's.
    """
    starts = _starts(chunks)
    contexts = np.array([chunk.end for chunk in chunks], dtype=np.int32)
    runs = [chunk.sequence.control_runs(chunk.start, chunk.end) for chunk in chunks]
    controls = [[row for row, _ in some] for some in runs]
    decodes = sum(1 for chunk in chunks if chunk.length == 1)
    edits = edits_of(tables, chunks[:decodes], controls[:decodes])
    prefills = tuple(
        _prefill(tables, chunk, some)
        for chunk, some in zip(chunks[decodes:], runs[decodes:], strict=True)
    )
    edited = bool(edits) or any(run.edits for prefill in prefills for run in prefill.runs)
    tag_rows = [chunk.sequence.tag_row for chunk in chunks]
    slots, at, lengths, pages, programs, tagged, *others = upload(
        _slots(chunks, decodes),
        starts,
        contexts,
        _page_table(chunks),
        _spread(runs),
        np.array(tag_rows, dtype=np.int32),
        *more,
    )
    batch = AttentionBatch(
        slots=slots,
        query_starts=at,
        context_lens=lengths,
        page_table=pages,
        num_decodes=decodes,
        max_context=max(contexts[:decodes].tolist(), default=0),
        control_rows=programs,
        tag_rows=tagged,
        edits=edits,
        prefills=prefills,
        classes=tables.classes(tag_rows),
        per_head_classes=edited and has_per_head_classes(chunks),
        controls=tables.controls if edited else None,
        tags=tables.tags if edited else None,
        invariant=tables.invariant,
    )
    return batch, others


def fill_in(tokens: torch.Tensor, sources: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """``tokens`` with those that only the device knows; see :class:`Step`. int64 [T]."""
    return torch.where(sources < 0, tokens, drawn.index_select(0, sources.clamp(min=0)))


def slots_of(pages: Batch[int], start: int, end: int) -> Ints:
    """Cache slots of positions ``start`` to ``end`` of a sequence that holds ``pages``."""
    first = start // PAGE
    held = np.array(pages[first : -(-end // PAGE)], dtype=np.int64)
    slots = held[:, None] * PAGE + np.arange(PAGE)
    return slots.reshape(-1)[start - first * PAGE : end - first * PAGE]


def edits_of(tables: DeviceTables, chunks: Batch[Chunk], rows: Batch[list[int]]) -> LayerEdits:
    """The union of what these chunks' query rows do, per layer."""
    plans = (chunk.sequence.plan for chunk in chunks)
    hides = any(plan is not None and plan.hides for plan in plans)
    return tables.edits({row for some in rows for row in set(some)}, hides)


def has_per_head_classes(chunks: Batch[Chunk]) -> bool:
    """True if query rows of these chunks have key classes of single heads."""
    plans = ((chunk.sequence.plan, chunk.start) for chunk in chunks)
    return any(
        plan is not None and plan.phase(start) in plan.needs.per_head_classes
        for plan, start in plans
    )


def _starts(chunks: Batch[Chunk]) -> NDArray[np.int32]:
    """First row of each chunk, and the one behind the last."""
    lengths = np.array([chunk.length for chunk in chunks], dtype=np.int32)
    return np.concatenate([[0], lengths.cumsum()]).astype(np.int32)


def _spread(runs: Batch[list[tuple[int, int]]]) -> NDArray[np.int32]:
    """Row of the control tables of every query row: int32 [T]."""
    rows, counts = zip(*(run for some in runs for run in some), strict=True)
    return np.repeat(np.array(rows, np.int32), counts)


def _prefill(tables: DeviceTables, chunk: Chunk, runs: list[tuple[int, int]]) -> Prefill:
    """What the host knows of a chunk of several rows."""
    return Prefill(
        queries=chunk.length,
        context=chunk.end,
        runs=tuple(
            Run(count, row, edits_of(tables, [chunk], [[row]]), span)
            for row, count, span in _spans(chunk, runs)
        ),
    )


def _spans(chunk: Chunk, runs: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Control row, rows and span of each run; one that leaves the prompt becomes two."""
    sequence, position = chunk.sequence, chunk.start
    prompt = sequence.prompt_length
    of_prompt = [count for _, count in sequence.control_runs(0, prompt)]
    ends = list(accumulate(of_prompt))
    for row, count in runs:
        inside = min(count, max(prompt - position, 0))
        if inside:
            yield row, inside, of_prompt[bisect_right(ends, position)]
        if count > inside:
            yield row, count - inside, 0
        position += count


# Single tokens, most of what a server packs, go through plain lists: an array each would cost more.


def _tokens(chunks: Batch[Chunk], decodes: int) -> Ints:
    """Token of every row, 0 where the host does not know it: int64 [T]."""
    single: list[int] = []
    for chunk in chunks[:decodes]:
        known = chunk.sequence.tokens[chunk.start : chunk.end]
        single += known or (0,)  # only a single token can be unknown
    longer = (chunk.sequence.ids(chunk.start, chunk.end) for chunk in chunks[decodes:])
    return np.concatenate([np.array(single, dtype=np.int64), *longer])


def _sources(
    chunks: Batch[Chunk], upload: Uploader, drawn: Mapping[Sequence, int], rows: int
) -> torch.Tensor | None:
    unknown = [i for i, c in enumerate(chunks) if c.end > len(c.sequence.tokens)]
    if not unknown:
        return None
    sources = np.full(rows, -1, dtype=np.int64)
    for index in unknown:  # single tokens come first, so chunk i is row i
        sources[index] = drawn[chunks[index].sequence]
    return upload(sources)[0]


def _slots(chunks: Batch[Chunk], decodes: int) -> Ints:
    """Cache slot of every row: int64 [T]."""
    single = [
        chunk.sequence.pages[chunk.start // PAGE] * PAGE + chunk.start % PAGE
        for chunk in chunks[:decodes]
    ]
    longer = (slots_of(c.sequence.pages, c.start, c.end) for c in chunks[decodes:])
    return np.concatenate([np.array(single, dtype=np.int64), *longer])


def _positions(chunks: Batch[Chunk], positions: Batch[PromptPositions], decodes: int) -> Ints:
    """Position ids of every row: int64 [axes, T]."""
    pairs = list(zip(chunks, positions, strict=True))
    axes = positions[0].table.shape[0]
    single = np.array([p.at(c.start) for c, p in pairs[:decodes]], dtype=np.int64)
    longer = (p.slice(c.start, c.end) for c, p in pairs[decodes:])
    return np.concatenate([single.reshape(-1, axes).T, *longer], axis=1)


def _page_table(chunks: Batch[Chunk]) -> NDArray[np.int32]:
    """Pages in use, padded with page 0: int32 [chunks, pages of the longest]."""
    used = [-(-chunk.end // PAGE) for chunk in chunks]
    table = np.zeros((len(chunks), max(used)), dtype=np.int32)
    for row, (chunk, count) in enumerate(zip(chunks, used, strict=True)):
        table[row, :count] = chunk.sequence.pages[:count]
    return table


def control_rows(chunk: Chunk) -> list[int]:
    """Row of the control tables of every query row."""
    runs = chunk.sequence.control_runs(chunk.start, chunk.end)
    return [row for row, count in runs for _ in range(count)]
