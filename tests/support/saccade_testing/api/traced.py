"""What a scripted engine reads for a trace: numbers that say which row, layer, head they are of."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from saccade_server.engine.arrays import Array
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.traces.data import (
    SUMMED,
    AttentionReading,
    DivergenceReading,
    EntropyReading,
    LensReading,
    ProjectionReading,
    SaliencyReading,
    ScoreReading,
    SinkReading,
    TokenShareReading,
    TracePiece,
)

HEADS = 4
"""Of every model that is played here."""


def pieces(
    request: GenerateRequest, start: int, end: int, last: bool = False
) -> tuple[TracePiece, ...]:
    """Of rows ``start`` to ``end``; with the last output what is summed over all rows, too."""
    traced = request.trace.readings if request.trace else ()
    readings = [reading for reading in traced if not isinstance(reading, ScoreReading)]
    return tuple(piece for reading in readings for piece in _pieces(reading, start, end, last))


def _pieces(reading: Any, start: int, end: int, last: bool) -> Iterator[TracePiece]:
    first, behind = max(start, reading.rows[0]), min(end, reading.rows[1])
    if "row" in getattr(reading, "over", ()):
        if last and reading.rows[0] < end:
            total = values(reading, range(reading.rows[0], min(reading.rows[1], end))).sum(0)
            yield TracePiece(reading.name, SUMMED, Array.pack(total))
    elif first < behind:
        array = values(reading, range(first, behind))
        if isinstance(reading, LensReading):
            ranks = np.arange(reading.top, dtype=np.float32)
            lens: dict[str, np.ndarray[Any, Any]] = {
                ".tokens": (65 + ranks).astype(np.int32),
                ".logprobs": -ranks,
            }
            for name, row in lens.items():
                found = np.broadcast_to(row, (*array.shape, reading.top))
                yield TracePiece(reading.name + name, first, Array.pack(found))
        else:
            yield TracePiece(reading.name, first, Array.pack(array))


def values(reading: Any, rows: range) -> np.ndarray[Any, Any]:
    """1 for row 1, 1/64 for layer 1, 1/64^2 for head 1, 1/64^3 for column 1."""
    shape = [len(rows), *(len(axis) for axis in _axes(reading))]
    found = np.zeros(shape, np.float32)
    for at, axis in enumerate([list(rows), *_axes(reading)]):
        broadcast = [1] * len(shape)
        broadcast[at] = -1
        found += np.asarray(axis, np.float32).reshape(broadcast) / np.float32(64**at)
    return found


def _axes(reading: Any) -> Iterator[list[int]]:
    over: frozenset[str] = getattr(reading, "over", frozenset())
    if isinstance(reading, TokenShareReading):
        yield list(range(len(reading.groups)))
        return
    if isinstance(reading, EntropyReading) and not reading.layers:
        return
    if "layer" not in over:
        yield list(reading.layers)
    if isinstance(reading, ProjectionReading):
        yield list(range(reading.vectors.shape[0]))
    elif isinstance(reading, DivergenceReading):
        yield list(range(HEADS))
    elif isinstance(reading, SaliencyReading):
        if "head" not in over:
            yield list(reading.heads)
        yield [at for start, end in reading.keys for at in range(start, end)]
    elif isinstance(reading, AttentionReading):
        if "head" not in over:
            yield list(reading.heads)
        if reading.each:
            yield [at for group in reading.keys for start, end in group for at in range(start, end)]
        else:
            count = (reading.sinks == "group") + bool(reading.recent) + len(reading.keys) + 1
            yield list(range(count))
    else:
        assert isinstance(reading, EntropyReading | SinkReading | LensReading), reading
