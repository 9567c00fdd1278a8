"""Distributions read from residuals on their way: what the model would say without later layers."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Batch
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray

from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.traces.base import Drawn, Reader, Traced, Watch, rows_of
from saccade_server.engine.traces.data import Reading
from saccade_server.models.lens import AT_ONCE
from saccade_server.models.tape import Activation

R = TypeVar("R", bound=Reading)

Read = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
"""From residuals [n, hidden_size] to what is read of their distributions, [n, ...] each."""


class ExitReader(Reader[R]):
    """A reader of residuals that enter layers, and of what is behind the last."""

    @property
    def places(self) -> int:
        """Places between layers."""
        return self.parts.model.layers + 1


@dataclass
class Group(Generic[R]):
    """Readings of the same places, in a step."""

    traced: list[Traced[R]]
    places: tuple[int, ...]
    rows: torch.Tensor  # int64, of the step
    found: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)  # by place


class ExitWatch(Watch, Generic[R]):
    """Collects residuals of rows, and projects them together: the head's weights are read once.

    As soon as they are many they are projected and forgotten, while layers still run, so a whole
    prompt in all layers needs no more memory than a few rows.
    """

    def __init__(self, parts: EngineParts, traced: Batch[Traced[R]], read: Read) -> None:
        self._read = read
        self._groups = self._grouped(parts, traced)
        self.activations = frozenset(
            (Activation.RESIDUAL, place) for group in self._groups for place in group.places
        )
        self._waiting: list[tuple[Group[R], int, torch.Tensor]] = []

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """See :class:`Watch`."""
        for group in self._groups:
            if layer in group.places:
                self._waiting.append((group, layer, made.index_select(0, group.rows)))
        if sum(len(rows) for _, _, rows in self._waiting) >= AT_ONCE:
            self._project()

    def results(self, drawn: Drawn) -> list[torch.Tensor]:
        """Of each group all that is read, [rows, places, ...] each."""
        self._project()
        return [
            torch.stack(columns, 1)
            for group in self._groups
            for columns in zip(*(group.found[place] for place in group.places), strict=True)
        ]

    def note(self, arrays: Batch[NDArray[Any]]) -> None:
        """See :class:`Watch`."""
        each = len(arrays) // len(self._groups)
        for at, group in enumerate(self._groups):
            self.log(group.traced, arrays[at * each : (at + 1) * each])

    def log(self, traced: Batch[Traced[R]], arrays: Batch[NDArray[Any]]) -> None:
        """Log what was read of the rows of these, [rows, places, ...] each."""
        raise NotImplementedError

    def _grouped(self, parts: EngineParts, traced: Batch[Traced[R]]) -> list[Group[R]]:
        found: dict[tuple[int, ...], list[Traced[R]]] = {}
        for one in traced:
            places = one.reading.layers or (parts.model.layers,)
            found.setdefault(places, []).append(one)
        rows = parts.upload(*map(rows_of, found.values()))
        return [
            Group(some, places, there)
            for (places, some), there in zip(found.items(), rows, strict=True)
        ]

    def _project(self) -> None:
        if not self._waiting:
            return
        sizes = [len(rows) for _, _, rows in self._waiting]
        read = self._read(torch.cat([rows for _, _, rows in self._waiting]))
        parts = zip(*(tensor.split(sizes) for tensor in read), strict=True)  # type: ignore[no-untyped-call]
        for (group, place, _), found in zip(self._waiting, parts, strict=True):
            group.found[place] = found
        self._waiting = []
