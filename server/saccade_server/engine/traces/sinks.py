"""Sinks of traced sequences: every token's score in every layer, whoever reads it.

Scores lie in the pool that rules which look for sinks use too, beside the keys. A sequence whose
trace reads them scores all its rows, not only those that are read, because any key may be a sink;
it finds only cached pages that bring the scores of all layers along (prefix.py).
"""

from __future__ import annotations

from collections.abc import Sequence as Batch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_kernels import ops
from saccade_server.engine.batch import slots_of
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.traces.base import Drawn, Reader, Traced, Watch
from saccade_server.engine.traces.data import SinkReading
from saccade_server.models.tape import Activation


class SinkScorer(Watch):
    """Scores the rows of some chunks in all layers. It gives nothing; others read the pool."""

    def __init__(self, parts: EngineParts, chunks: Batch[tuple[Chunk, int]]) -> None:
        """``chunks``: each with its first row in the step."""
        self._pool = parts.sink_scores
        spans = [np.arange(row, row + chunk.length) for chunk, row in chunks]
        slots = [slots_of(chunk.sequence.pages, chunk.start, chunk.end) for chunk, _ in chunks]
        self._rows, self._slots, self._dims = parts.upload(
            np.concatenate(spans), np.concatenate(slots), np.array(parts.sink_dims, np.int64)
        )
        layers = range(parts.model.layers)
        self.activations = frozenset((Activation.RESIDUAL, layer) for layer in layers)

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """See :class:`Watch`."""
        ops.store_sink_scores(made, self._rows, self._dims, self._slots, self._pool[layer])


class SinkReader(Reader[SinkReading]):
    """Hands scores out."""

    kind = SinkReading

    def why_refused(self, reading: SinkReading, request: GenerateRequest) -> str | None:
        """Nobody knows where the model's sinks show."""
        if not self.parts.sink_dims:
            return "it is not known in which dimensions this model's sinks show"
        return None if reading.layers else "it names no layers"

    def watch(self, traced: Batch[Traced[SinkReading]]) -> Watch:
        """Of rows that shared pages bring along too."""
        return SinkWatch(self.parts, traced)


class SinkWatch(Watch):
    """Copies scores out of the pool, behind the layers."""

    def __init__(self, parts: EngineParts, traced: Batch[Traced[SinkReading]]) -> None:
        self._traced, self._pool = traced, parts.sink_scores
        slots = [slots_of(one.sequence.pages, one.start, one.end) for one in traced]
        layers = [np.array(one.reading.layers, np.int64) for one in traced]
        uploaded = parts.upload(*slots, *layers)
        self._slots, self._layers = uploaded[: len(slots)], uploaded[len(slots) :]

    def results(self, drawn: Drawn) -> list[torch.Tensor]:
        """See :class:`Watch`; of each reading [rows, layers]."""
        return [
            self._pool.index_select(1, slots).index_select(0, layers).T.contiguous()
            for slots, layers in zip(self._slots, self._layers, strict=True)
        ]

    def note(self, arrays: Batch[NDArray[Any]]) -> None:
        """Log the rows that no step before has logged."""
        for one, array in zip(self._traced, arrays, strict=True):
            known = max(one.log.until(one.reading.name) - one.start, 0)
            if known < len(array):
                one.log.add(one.reading.name, one.start + known, array[known:])
