"""Stages: work before or behind a captured step, for some of its rows.

Part of the step's own graph, work that few rows ask for would multiply the step's variants, and
one request that asks would have a whole batch do it. So it has graphs of its own: one for each
kind of work and padded number of *such rows*, whatever the size of the step. A stage reads and
writes device memory alone. What it must know of its rows, their parameters, the host writes into
the block of the step, behind which nothing travels.

    ahead     write tables that the step reads
    behind    read, and replace, what the step left in fixed places (outputs.py): residuals, logits,
              greedy tokens

Stages are objects in a list. A padded number of rows is filled up with padding, which has values
of its own for every parameter and must change nothing that anybody reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_server.engine.batch import Ints
from saccade_server.engine.inputs import DecodeInputs
from saccade_server.engine.seats import Roster
from saccade_server.engine.transfer import Layout

T = TypeVar("T")


class StageVariant(NamedTuple):
    """A stage for a padded number of rows."""

    stage: str
    size: int


class Parameter(NamedTuple):
    """What the host tells a stage of each of its rows."""

    dtype: Any  # of numpy
    padding: Any = 0  # what padding has; fills ``shape``
    shape: tuple[int, ...] = ()  # of one row's


@dataclass(frozen=True)
class StepRows:
    """A padded step as its stages see it on the host."""

    roster: Roster
    starts: Ints  # position of each row
    inputs: DecodeInputs  # rows behind those of the roster are padding


class Stage(ABC):
    """One kind of work. Instances belong to one decoder, and may keep memory of its device."""

    name: str
    """What an operator reads, and what tells stages apart."""
    sizes: tuple[int, ...]
    """Padded numbers of rows, ascending; graphs of rare stages may be few: see :func:`doubling`."""
    parameters: tuple[Parameter, ...]
    reads: str = ""
    """A stage before it whose parameters it reads, in place of its own."""
    ahead: bool = False
    """True if it runs before the step."""

    @abstractmethod
    def asked(self, roster: Roster) -> Any:
        """What of a roster asks for the stage; None: nothing. Asked once as long as it is one."""

    @abstractmethod
    def write(self, parameters: list[NDArray[Any]], asked: Any, rows: StepRows) -> int:
        """Write the parameters of a step's rows, each array [largest size, ...] from its start.

        Returns:
            How many rows were written; 0: the stage has nothing to do in this step.
        """

    def rest(self) -> None:
        """Write padding into memory of its own, if what it is told of its rows lies there."""
        return

    @abstractmethod
    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        """Do the work for [size, ...] of each parameter; all that a graph captures."""


def doubling(most: int) -> tuple[int, ...]:
    """1, 2, 4 and so on, the last not less than ``most``."""
    return tuple(1 << power for power in range((most - 1).bit_length() + 1))


class Stages:
    """The stages of one decoder, in the order in which they run.

    Parameters of those that run first lie first: a step sends what lies behind the first that it
    wants, so what is rare should come before what is not.
    """

    def __init__(self, stages: Batch[Stage]) -> None:
        self._stages = {stage.name: stage for stage in stages}
        assert len(self._stages) == len(stages), "every stage has a name of its own"
        self._layouts = {stage.name: _layout(stage) for stage in stages}
        self._starts: dict[str, int] = {}
        self.size = 0
        """Bytes of all parameters."""
        for name, layout in self._layouts.items():
            self._starts[name] = self.size
            self.size += layout.size
        self._tensors: dict[str, list[torch.Tensor]] = {}
        self._written: dict[str, int] = {}

    def bind(self, memory: torch.Tensor) -> None:
        """Say where parameters lie on the device: uint8 of :attr:`size`."""
        for name, layout in self._layouts.items():
            start = self._starts[name]
            self._tensors[name] = layout.tensors(memory[start : start + layout.size])

    @property
    def variants(self) -> list[StageVariant]:
        """All that a step may need, the largest of a stage first."""
        return [
            StageVariant(stage.name, size)
            for stage in reversed(self._stages.values())
            for size in reversed(stage.sizes)
        ]

    @property
    def largest(self) -> list[StageVariant]:
        """The largest variant of each stage."""
        return [StageVariant(stage.name, stage.sizes[-1]) for stage in self._stages.values()]

    def wants(self, roster: Roster, behind: bool) -> bool:
        """True if some stage may have something to do."""
        return bool(self._wanted(roster, behind))

    def first(self, roster: Roster, behind: bool) -> int:
        """The first byte that a step may write.

        Args:
            behind: stages behind the step run too.
        """
        wanted = self._wanted(roster, behind)
        starts = (self._starts[stage.name] for stage, _ in wanted if stage.parameters)
        return min(starts, default=self.size)

    def write(
        self, block: NDArray[np.uint8], rows: StepRows, behind: bool, first: int = 0
    ) -> list[StageVariant]:
        """Write the parameters of a step; returns what to compute, in order.

        Args:
            block: bytes from ``first`` on; see :meth:`first`.
        """
        found = []
        for stage, asked in self._wanted(rows.roster, behind):
            count = stage.write(self._arrays(block, stage.name, first), asked, rows)
            if count:
                size = stage.sizes[bisect_left(stage.sizes, count)]
                self._pad(block, stage, count, size, first)
                found.append(StageVariant(stage.name, size))
        return found

    def pad(self, block: NDArray[np.uint8], variant: StageVariant) -> None:
        """Write padding in every place of a variant, and of the stage whose parameters it reads."""
        stage = self._stages[variant.stage]
        stage.rest()
        self._pad(block, stage, 0, variant.size, 0)
        if stage.reads:
            self._pad(block, self._stages[stage.reads], 0, variant.size, 0)

    def compute(self, variant: StageVariant) -> None:
        """Do a variant's work for what was written for it."""
        name, size = variant
        owner = self._stages[name].reads or name
        written = self._written.get(name), self._written.get(owner)
        assert written == (size, size), "the block holds parameters of another size"
        parameters = [parameter[:size] for parameter in self._tensors[owner]]
        self._stages[name].compute(parameters, size)

    def around(self, step: T, variants: Batch[StageVariant]) -> list[T | StageVariant]:
        """A step and some stages, in the order in which they run."""
        ahead = [self._stages[variant.stage].ahead for variant in variants]
        before = [found for found, first in zip(variants, ahead, strict=True) if first]
        behind = [found for found, first in zip(variants, ahead, strict=True) if not first]
        return [*before, step, *behind]

    def _wanted(self, roster: Roster, behind: bool) -> list[tuple[Stage, Any]]:
        wanted: list[tuple[Stage, Any]] | None = roster.noted.get(self)
        if wanted is None:
            each = ((stage, stage.asked(roster)) for stage in self._stages.values())
            wanted = [(stage, asked) for stage, asked in each if asked is not None]
            roster.noted[self] = wanted
        if behind or not wanted:
            return wanted
        return [(stage, asked) for stage, asked in wanted if stage.ahead]

    def _pad(
        self, block: NDArray[np.uint8], stage: Stage, count: int, size: int, first: int
    ) -> None:
        arrays = self._arrays(block, stage.name, first)
        for array, parameter in zip(arrays, stage.parameters, strict=True):
            array[count:size] = parameter.padding
        self._written[stage.name] = size

    def _arrays(self, block: NDArray[np.uint8], name: str, first: int) -> list[NDArray[Any]]:
        layout, start = self._layouts[name], self._starts[name] - first
        return layout.arrays(block[start : start + layout.size])


def _layout(stage: Stage) -> Layout:
    most = stage.sizes[-1]
    return Layout([((most, *p.shape), p.dtype) for p in stage.parameters])
