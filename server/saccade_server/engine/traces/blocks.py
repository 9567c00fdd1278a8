"""Blocks of traced rows, as batches apart from the step's own."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Batch
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from saccade_kernels.batch import AttentionBatch
from saccade_server.engine.batch import attention_of
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.traces.base import Traced

ROOM = 2**26
"""Bytes of the weights of one block."""


@dataclass(frozen=True)
class Segment:
    """Rows of one sequence, one after another: positions ``start`` to ``end``, and in the step."""

    chunk: Chunk
    start: int
    end: int
    row: int  # of the step, the first

    @property
    def sequence(self) -> Sequence:
        """Whose rows they are."""
        return self.chunk.sequence


@dataclass(frozen=True)
class Block:
    """Some traced rows as a batch: single rows are decodes, more of one sequence a prefill."""

    segments: tuple[Segment, ...]
    takers: tuple[int, ...]  # which of the traced want rows of it
    rows: torch.Tensor  # int64 [n]: of the step
    batch: AttentionBatch

    def of(self, traced: Traced[Any]) -> tuple[int, int, int]:
        """Rows that are traced: the first in the block, how many, and the first among them all."""
        first = 0
        for segment in self.segments:
            start, end = max(segment.start, traced.start), min(segment.end, traced.end)
            if segment.sequence is traced.sequence and start < end:
                return first + start - segment.start, end - start, start - traced.start
            first += segment.end - segment.start
        raise AssertionError("the block has no such row")


def blocks_of(parts: EngineParts, traced: Batch[Traced[Any]]) -> list[Block]:
    """All rows that are traced, each once, in blocks of bounded memory."""
    wide = torch.promote_types(parts.model.dtype, torch.float32).itemsize
    room = max(ROOM // (wide * parts.model.heads), 1)  # weights of one head
    singles: list[Segment] = []
    found: list[Block] = []
    for segment in _segments(traced):
        if segment.end == segment.start + 1:
            singles.append(segment)
            continue
        rows = max(room // segment.end, 1)
        for start in range(segment.start, segment.end, rows):
            end = min(start + rows, segment.end)
            row = segment.row + start - segment.start
            found.append(_block(parts, traced, (replace(segment, start=start, end=end, row=row),)))
    longest = max((segment.end for segment in singles), default=1)
    most = max(room // longest, 1)
    for at in range(0, len(singles), most):
        found.append(_block(parts, traced, tuple(singles[at : at + most])))
    return found


def _segments(traced: Batch[Traced[Any]]) -> Iterator[Segment]:
    """The rows of each chunk without gaps between them, and each once."""
    last: Segment | None = None
    order = sorted(traced, key=lambda one: (one.row, one.end - one.start))
    for one in order:
        segment = Segment(one.chunk, one.start, one.end, one.row)
        if last is not None and last.chunk is one.chunk and one.start <= last.end:
            last = replace(last, end=max(last.end, one.end))
            continue
        if last is not None:
            yield last
        last = segment
    if last is not None:
        yield last


def _block(parts: EngineParts, traced: Batch[Traced[Any]], segments: tuple[Segment, ...]) -> Block:
    chunks = [
        Chunk(one.sequence, one.start, one.end - one.start, False, one.chunk.admission)
        for one in segments
    ]
    at = [np.arange(one.row, one.row + one.end - one.start) for one in segments]
    batch, (rows,) = attention_of(chunks, parts.tables, parts.upload, np.concatenate(at))
    takers = tuple(
        index
        for index, one in enumerate(traced)
        if any(
            segment.chunk is one.chunk and segment.start < one.end and one.start < segment.end
            for segment in segments
        )
    )
    tables = parts.tables
    # Read layer by layer as the step runs, while tags of later layers are not settled yet.
    batch = replace(batch, controls=tables.controls, tags=tables.tags, settles=True)
    return Block(segments, takers, rows, batch)
