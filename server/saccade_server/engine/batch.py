"""Pack the chunks of a step into the tensors a forward pass takes."""

from __future__ import annotations

from collections.abc import Sequence as Batch
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_kernels.batch import PAGE, AttentionBatch, LayerEdits, Prefill, Run
from saccade_server.engine.scheduler import Chunk
from saccade_server.engine.tables import DeviceTables

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One packed step. T tokens in all, chunks in order, single tokens first."""

    chunks: tuple[Chunk, ...]
    starts: tuple[int, ...]  # first row of each chunk
    tokens: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [axes, T]
    sampled: torch.Tensor  # int64: last row of each chunk that samples
    attention: AttentionBatch


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
    device: torch.device,
) -> Step:
    """Build the step's tensors; ``positions`` go with ``chunks``."""
    lengths = np.array([chunk.length for chunk in chunks], dtype=np.int32)
    starts = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    contexts = np.array([chunk.end for chunk in chunks], dtype=np.int32)
    controls = [_control_rows(chunk) for chunk in chunks]
    decodes = int((lengths == 1).sum())
    edits = _edits(tables, chunks[:decodes], controls[:decodes])
    prefills = tuple(
        _prefill(tables, chunk, rows)
        for chunk, rows in zip(chunks[decodes:], controls[decodes:], strict=True)
    )
    edited = bool(edits) or any(run.edits for prefill in prefills for run in prefill.runs)

    def tensor(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    attention = AttentionBatch(
        slots=tensor(_slots(chunks, decodes)),
        query_starts=tensor(starts),
        context_lens=tensor(contexts),
        page_table=tensor(_page_table(chunks)),
        num_decodes=decodes,
        max_context=max(contexts[:decodes].tolist(), default=0),
        control_rows=tensor(np.array([row for rows in controls for row in rows], np.int32)),
        tag_rows=tensor(np.array([c.sequence.tag_row for c in chunks], dtype=np.int32)),
        edits=edits,
        prefills=prefills,
        controls=tables.controls if edited else None,
        tags=tables.tags if edited else None,
    )
    tokens = [t for c in chunks for t in c.sequence.tokens[c.start : c.end]]
    last = [end - 1 for c, end in zip(chunks, starts[1:], strict=True) if c.samples]
    return Step(
        chunks=tuple(chunks),
        starts=tuple(starts[:-1].tolist()),
        tokens=tensor(np.array(tokens, dtype=np.int64)),
        positions=tensor(_positions(chunks, positions, decodes)),
        sampled=tensor(np.array(last, dtype=np.int64)),
        attention=attention,
    )


def slots_of(pages: Batch[int], start: int, end: int) -> Ints:
    """Cache slots of positions ``start`` to ``end`` of a sequence that holds ``pages``."""
    first = start // PAGE
    held = np.array(pages[first : -(-end // PAGE)], dtype=np.int64)
    position = np.arange(start, end, dtype=np.int64)
    return held[position // PAGE - first] * PAGE + position % PAGE


def _edits(tables: DeviceTables, chunks: Batch[Chunk], rows: Batch[list[int]]) -> LayerEdits:
    """The union of what these chunks' query rows do, per layer."""
    plans = (chunk.sequence.plan for chunk in chunks)
    hides = any(plan is not None and plan.hides for plan in plans)
    return tables.edits({row for some in rows for row in set(some)}, hides)


def _prefill(tables: DeviceTables, chunk: Chunk, rows: list[int]) -> Prefill:
    """What the host knows of a chunk of several rows."""
    runs = [(row, len(list(same))) for row, same in groupby(rows)]
    return Prefill(
        queries=chunk.length,
        context=chunk.end,
        runs=tuple(Run(count, row, _edits(tables, [chunk], [[row]])) for row, count in runs),
    )


# Single tokens, most of what a server packs, go through plain lists: an array each would cost more.


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


def _control_rows(chunk: Chunk) -> list[int]:
    sequence = chunk.sequence
    if not sequence.control_rows:
        return [0] * chunk.length
    return [sequence.control_row(position) for position in range(chunk.start, chunk.end)]
