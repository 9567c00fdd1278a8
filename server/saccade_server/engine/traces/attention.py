"""Attention of traced rows: shares of groups of keys, or of single keys, reduced on the device.

The rows of a step that somebody wants are cut into *blocks*, each a batch of its own (blocks.py),
so the step's own batch is what it is without them. In each layer the weights that the heads of a
block use are computed once, whoever reads them, and each reading takes its rows, heads and keys.

The memory of a block's weights is bounded, whatever the length of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence as Batch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_kernels import ops
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.traces.base import Drawn, LayerQueries, Reader, Traced, Watch
from saccade_server.engine.traces.blocks import Block, blocks_of
from saccade_server.engine.traces.columns import Columns
from saccade_server.engine.traces.data import AttentionReading


class AttentionReader(Reader[AttentionReading]):
    """Masses, rows, heat maps and sums over rows."""

    kind = AttentionReading

    def why_refused(self, reading: AttentionReading, request: GenerateRequest) -> str | None:
        """Heads that are not there, keys that nobody can name, sinks that nobody knows."""
        if list(reading.heads) != sorted({*reading.heads} & {*range(self.parts.model.heads)}):
            return "its heads are not distinct heads of the model, in order"
        if not reading.heads or not reading.layers:
            return "it names no heads or no layers"
        if any(not 0 <= start < end for group in reading.keys for start, end in group):
            return "its keys are no positions"
        if reading.each and (reading.recent or reading.sinks == "group" or not reading.keys):
            return "keys that have columns of their own are in no other group"
        if reading.sinks != "keep" and not self.parts.sink_dims:
            return "it is not known in which dimensions this model's sinks show"
        return None

    def watch(self, traced: Batch[Traced[AttentionReading]]) -> Watch:
        """All readings of a step together: those of the same rows share the weights."""
        return AttentionWatch(self.parts, traced)


class AttentionWatch(Watch):
    """Takes what readings want of the weights of each layer, as it comes."""

    def __init__(self, parts: EngineParts, traced: Batch[Traced[AttentionReading]]) -> None:
        self._blocks = blocks_of(parts, traced)
        self._takers = [Taker(parts, one) for one in traced]
        self.layers = frozenset(layer for one in traced for layer in one.reading.layers)

    def attend(self, queries: LayerQueries) -> None:
        """See :class:`Watch`."""
        for block in self._blocks:
            takers = [self._takers[index] for index in block.takers]
            wanted = [taker for taker in takers if queries.layer in taker.layers]
            if wanted:
                weights = weights_of(queries, block)
                for taker in wanted:
                    taker.take(queries.layer, block, weights)

    def results(self, drawn: Drawn) -> list[torch.Tensor]:
        """See :class:`Watch`; of each reading what it wants."""
        return [taker.found for taker in self._takers]

    def note(self, arrays: Batch[NDArray[Any]]) -> None:
        """See :class:`Watch`."""
        for taker, array in zip(self._takers, arrays, strict=True):
            taker.note(array)


def weights_of(queries: LayerQueries, block: Block) -> torch.Tensor:
    """A' of a block's rows in a layer: float32 (or float64) [rows, heads, keys of the longest]."""
    call = queries.of(block.rows, block.batch)
    caches = (call.key_cache, call.value_cache, call.batch)
    scores = (call.scale, call.softcap)
    return ops.head_weights(call.query, *caches, call.layer, *scores, call.window)


class Taker:
    """What one reading takes of the rows of one chunk: [rows, layers, heads, columns], where an
    axis that is taken out has one entry.
    """

    def __init__(self, parts: EngineParts, traced: Traced[AttentionReading]) -> None:
        reading = traced.reading
        self._traced = traced
        self.layers = {layer: place for place, layer in enumerate(reading.layers)}
        self._over = reading.over
        self._columns = Columns(parts, traced)
        self._heads: torch.Tensor | None = None
        if len(reading.heads) < parts.model.heads:
            (self._heads,) = parts.upload(np.array(reading.heads, np.int64))
        sizes = {
            "row": traced.end - traced.start,
            "layer": len(reading.layers),
            "head": len(reading.heads),
        }
        shape = [1 if axis in reading.over else size for axis, size in sizes.items()]
        dtype = torch.promote_types(parts.model.dtype, torch.float32)
        shape.append(self._columns.count)
        self.found = torch.zeros(shape, dtype=dtype, device=parts.device)

    def take(self, layer: int, block: Block, weights: torch.Tensor) -> None:
        """Take a layer's share of a block's weights, [rows of the block, heads, keys]."""
        first, rows, at = block.of(self._traced)  # in the block, and among the own rows
        own = weights[first : first + rows]
        if self._heads is not None:
            own = own.index_select(1, self._heads)
        if "head" in self._over:
            own = own.mean(1, keepdim=True)
        taken = self._columns.reduce(own, layer, self._traced.start + at)
        if "row" in self._over:
            taken, at = taken.sum(0, keepdim=True), 0
        if "layer" in self._over:
            taken = taken / len(self.layers)
        place = 0 if "layer" in self._over else self.layers[layer]
        self.found[at : at + len(taken), place] += taken

    def note(self, array: NDArray[Any]) -> None:
        """Log what was found, without the axes that are taken out."""
        reading, log = self._traced.reading, self._traced.log
        gone = [place for place, name in enumerate(("row", "layer", "head")) if name in self._over]
        array = array.squeeze(tuple(gone))
        if "row" in self._over:
            log.sum(reading.name, array)
        else:
            log.add(reading.name, self._traced.start, array)
