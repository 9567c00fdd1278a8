"""What a site holds, on directions that came with the request."""

from __future__ import annotations

from collections.abc import Sequence as Batch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_kernels.residual import SiteKind
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.traces.base import Drawn, Reader, Traced, Watch
from saccade_server.engine.traces.data import ProjectionReading
from saccade_server.models.lens import projections
from saccade_server.models.readout import KEPT, site_rows
from saccade_server.models.tape import Activation

SITES = {
    "residual": SiteKind.RESIDUAL,
    "attention_output": SiteKind.ATTENTION_OUTPUT,
    "mlp_output": SiteKind.MLP_OUTPUT,
}
"""What readings call sites."""


class ProjectionReader(Reader[ProjectionReading]):
    """Keeps the directions of every sequence on the device."""

    kind = ProjectionReading

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        self._directions: dict[Sequence, dict[str, torch.Tensor]] = {}

    @property
    def places(self) -> int:
        """Places between layers."""
        return self.parts.model.layers + 1

    def why_refused(self, reading: ProjectionReading, request: GenerateRequest) -> str | None:
        """Only the residual has a place behind the last layer."""
        model, vectors = self.parts.model, reading.vectors
        size = (vectors.shape[0] if vectors.shape else 0, model.hidden_size)
        if vectors.shape != size or not size[0] or np.dtype(vectors.dtype) != np.float32:
            return f"its vectors are not float32 [directions, {model.hidden_size}]"
        if not reading.layers:
            return "it has no layers"
        if reading.site != "residual" and reading.layers[-1] == model.layers:
            return f"there is no {reading.site} behind the last layer"
        return None

    def watch(self, traced: Batch[Traced[ProjectionReading]]) -> ProjectionWatch:
        """One for all rows."""
        return ProjectionWatch(self.parts, traced, [self._vectors(one) for one in traced])

    def forget(self, sequence: Sequence) -> None:
        """Drop its directions."""
        self._directions.pop(sequence, None)

    def _vectors(self, one: Traced[ProjectionReading]) -> torch.Tensor:
        known, name = self._directions.setdefault(one.sequence, {}), one.reading.name
        if name not in known:
            (known[name],) = self.parts.upload(np.array(one.reading.vectors.unpack()))
        return known[name]


class ProjectionWatch(Watch):
    """Projects rows as soon as they are made."""

    def __init__(
        self,
        parts: EngineParts,
        traced: Batch[Traced[ProjectionReading]],
        directions: Batch[torch.Tensor],
    ) -> None:
        self._decoder = parts.model.decoder
        self._traced, self._directions = traced, directions
        self._places = [(KEPT[SITES[one.reading.site]], one.reading.layers) for one in traced]
        self.activations = frozenset((w, layer) for w, layers in self._places for layer in layers)
        runs = [one.sequence.control_runs(one.start, one.end) for one in traced]
        programs = [np.repeat(*np.array(some, np.int32).T) for some in runs]
        uploaded = parts.upload(*(one.rows for one in traced), *programs)
        self._rows, self._programs = uploaded[: len(traced)], uploaded[len(traced) :]
        self._edits = parts.tables.residual_step({row for some in runs for row, _ in some})
        self._found: list[list[torch.Tensor]] = [[] for _ in traced]

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """See :class:`Watch`."""
        for at, (wanted, layers) in enumerate(self._places):
            if what is wanted and layer in layers:
                kind = SITES[self._traced[at].reading.site]
                rows, programs = made.index_select(0, self._rows[at]), self._programs[at]
                held = site_rows(self._decoder, kind, layer, rows, programs, self._edits)
                self._found[at].append(projections(held, self._directions[at]))

    def results(self, drawn: Drawn) -> list[torch.Tensor]:
        """Of each reading [rows, layers, directions]."""
        return [torch.stack(columns, 1) for columns in self._found]

    def note(self, arrays: Batch[NDArray[Any]]) -> None:
        """See :class:`Watch`."""
        for one, array in zip(self._traced, arrays, strict=True):
            one.log.add(one.reading.name, one.start, array)
