"""Entropy of the model's own distribution, at its end or at early exits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Batch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.traces.base import Reader, Traced, Watch, spread
from saccade_server.engine.traces.data import EntropyReading
from saccade_server.models import lens
from saccade_server.models.tape import Activation


class EntropyReader(Reader[EntropyReading]):
    """Of rows whether or not a token is drawn behind them; no edit of logits counts."""

    kind = EntropyReading

    @property
    def places(self) -> int:
        """Layers that a residual enters, and what is behind the last."""
        return self.parts.model.layers + 1

    def watch(self, traced: Batch[Traced[EntropyReading]]) -> Watch:
        """One for all rows; readings with the same layers go together."""
        groups: dict[tuple[int, ...], list[Traced[EntropyReading]]] = defaultdict(list)
        for one in traced:
            groups[one.reading.layers].append(one)
        return EntropyWatch(self.parts, groups)


class EntropyWatch(Watch):
    """Copies residuals, and projects them behind the step."""

    def __init__(
        self,
        parts: EngineParts,
        groups: dict[tuple[int, ...], list[Traced[EntropyReading]]],
    ) -> None:
        self._parts = parts
        self._groups = list(groups.values())
        depth = parts.model.layers
        self._residuals = [layers or (depth,) for layers in groups]
        self._rows = parts.upload(
            *(np.concatenate([one.rows for one in group]) for group in self._groups)
        )
        self.activations = frozenset(
            (Activation.RESIDUAL, index) for some in self._residuals for index in some
        )
        self._kept: dict[tuple[int, int], torch.Tensor] = {}

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """See :class:`Watch`."""
        for group, wanted in enumerate(self._residuals):
            if layer in wanted:
                self._kept[group, layer] = made.index_select(0, self._rows[group])

    def results(self) -> list[torch.Tensor]:
        """Of each group [rows], or [rows, layers]."""
        found = []
        for group, wanted in enumerate(self._residuals):
            columns = [
                lens.entropies(self._parts.model, self._kept[group, index]) for index in wanted
            ]
            layers = self._groups[group][0].reading.layers
            found.append(torch.stack(columns, 1) if layers else columns[0])
        return found

    def note(self, arrays: Batch[NDArray[Any]]) -> None:
        """See :class:`Watch`."""
        for group, array in zip(self._groups, arrays, strict=True):
            spread(group, array)
