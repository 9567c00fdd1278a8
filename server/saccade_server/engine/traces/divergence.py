"""How far heads' outputs are from those that they have without the images (VHD).

The request brings a branch without its images, whose trace names the same reading at the rows that
go with the leader's. Both rows run in one step, always; their head outputs are compared there, as
the output projection reads them.
"""

from __future__ import annotations

from collections.abc import Sequence as Batch
from typing import Any

import torch
from numpy.typing import NDArray

from saccade_kernels.divergence import Reactivity
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.traces.base import Drawn, LayerQueries, Reader, Traced, Watch, rows_of
from saccade_server.engine.traces.data import DivergenceReading
from saccade_server.engine.traces.parts import as_decodes

Pair = tuple[Traced[DivergenceReading], Traced[DivergenceReading]]
"""A row, and that of the branch."""


class DivergenceReader(Reader[DivergenceReading]):
    """Of rows that tokens are drawn from."""

    kind = DivergenceReading

    def why_refused(self, reading: DivergenceReading, request: GenerateRequest) -> str | None:
        """Only there do a sequence and its branch run in one step."""
        if not reading.layers:
            return "it has no layers"
        start, end = reading.rows
        first = start - len(request.tokens)
        if first < -1 or request.given:
            return "it is of rows that tokens are drawn from"
        if request.plan is not None and request.plan.needs.last_row_twice:
            return "the plan runs the last prompt row twice, and a branch's once"
        branch = request.branches[-1] if request.branches else None
        if branch is None or branch.measures or branch.trace is None:
            return "no branch goes with it"
        at = len(branch.tokens) + first
        wanted = DivergenceReading(
            name=reading.name, rows=(at, at + end - start), layers=reading.layers
        )
        return None if wanted in branch.trace.readings else "no reading of the branch goes with it"

    def watch(self, traced: Batch[Traced[DivergenceReading]]) -> DivergenceWatch:
        """One for all rows."""
        branches = {(one.sequence.leader, one.reading.name): one for one in traced}
        leaders = [one for one in traced if one.sequence.leader is None]
        pairs = [(one, branches[one.sequence, one.reading.name]) for one in leaders]
        return DivergenceWatch(self.parts, pairs)


class DivergenceWatch(Watch):
    """Attends for the rows once more, and compares."""

    def __init__(self, parts: EngineParts, pairs: Batch[Pair]) -> None:
        self._leaders = [leader for leader, _ in pairs]
        ordered = [*self._leaders, *(branch for _, branch in pairs)]
        assert all(one.end == one.start + 1 for one in ordered), "a token is drawn from each row"
        self._batch = as_decodes(parts, ordered)[0].batch
        (self._rows,) = parts.upload(rows_of(ordered))
        self.layers = frozenset(layer for one in self._leaders for layer in one.reading.layers)
        self._found: dict[int, torch.Tensor] = {}

    def attend(self, queries: LayerQueries) -> None:
        """See :class:`Watch`."""
        outputs = queries.of(self._rows, self._batch).run()
        own, without = outputs.chunk(2)
        self._found[queries.layer] = Reactivity().divergence(own, without)

    def results(self, drawn: Drawn) -> list[torch.Tensor]:
        """Of all rows in all layers that somebody wants, [rows, layers, heads]."""
        return [torch.stack([self._found[layer] for layer in sorted(self.layers)], 1)]

    def note(self, arrays: Batch[NDArray[Any]]) -> None:
        """See :class:`Watch`."""
        every = sorted(self.layers)
        for at, one in enumerate(self._leaders):
            columns = [every.index(layer) for layer in one.reading.layers]
            one.log.add(one.reading.name, one.start, arrays[0][at : at + 1, columns])
