"""Sinks among generated rows in padded steps: who asks lies in fixed places.

A stage ahead of the step writes, for every row, whose tags its token may change and by which rule.
Inside the layers two launches then score all rows and settle those that ask, as in an ordinary
step (models/probes.py). A row that does not ask settles a tag of nobody, as padding does.

Each generated token settles itself alone, and what the rule requires was decided by the prompt.
All rules of padded steps look at the model's own dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_interventions.rules import SinkRule
from saccade_kernels.controls import CLASSES
from saccade_kernels.residual import SiteKind
from saccade_kernels.sinks import SinkTags
from saccade_server.engine.inputs import DecodeInputs
from saccade_server.engine.seats import Roster
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Parameter, Stage, StepRows, doubling
from saccade_server.models.probes import SinkProbe

NEVER = float("inf")
"""The threshold of a row that is no sink whatever its score."""


class SinkStage(Stage):
    """Writes who asks, of all rows of the step: a row that does not has the values of padding."""

    name = "sinks"
    ahead = True

    def __init__(
        self,
        most: int,
        layers: int,
        device: torch.device,
        asks: Callable[[Sequence], SinkRule | None],
    ) -> None:
        """
        Args:
            most: rows of the largest step.
            asks: the rule of a sequence whose generated rows padded steps examine.
        """
        self.sizes = doubling(most)
        self.parameters = (
            Parameter(np.int64),  # tag row
            Parameter(np.int64),  # position
            Parameter(np.int64),  # class of the position if it is no sink
            Parameter(np.int64, -1),  # required class
            Parameter(np.int64, shape=(CLASSES,)),  # class as a sink
            Parameter(np.float32, NEVER, (layers,)),  # threshold by layer
        )
        self._asks = asks
        rows = self.sizes[-1]
        self._rows = torch.zeros((4, rows), dtype=torch.int64, device=device)
        self._remap = torch.zeros((rows, CLASSES), dtype=torch.int64, device=device)
        self._threshold = torch.full((layers, rows), NEVER, device=device)
        self._index = torch.arange(rows + 1, device=device)
        self._whole = torch.zeros(rows, dtype=torch.uint8, device=device)

    def asked(self, roster: Roster) -> list[SinkRule | None] | None:
        """The rule of each row whose generated tokens are examined; see :class:`Stage`."""
        rules = [self._asks(sequence) for sequence in roster.sequences]
        return rules if any(rule is not None for rule in rules) else None

    def write(
        self, parameters: list[NDArray[Any]], asked: list[SinkRule | None], rows: StepRows
    ) -> int:
        """See :class:`Stage`."""
        tag_row, position, base, require, remap, threshold = parameters
        for array, parameter in zip(parameters, self.parameters, strict=True):
            array[: len(asked)] = parameter.padding
        for row, rule in enumerate(asked):
            sequence = rows.roster.sequences[row]
            if rule is None or sequence.plan is None:
                continue
            tag_row[row], position[row] = sequence.tag_row, rows.starts[row]
            base[row] = sequence.plan.generated_tag
            require[row] = -1 if rule.require is None else rule.require
            remap[row] = np.arange(CLASSES)
            for tag, as_sink in rule.remap:
                remap[row, tag] = as_sink
            threshold[row, list(rule.layers)] = rule.threshold
        return len(asked)

    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        """See :class:`Stage`."""
        *columns, remap, threshold = parameters
        for table, column in zip(self._rows, columns, strict=True):
            table[:size].copy_(column)
        self._remap[:size].copy_(remap)
        self._threshold[:, :size].copy_(threshold.T)

    def probe(self, inputs: DecodeInputs, shared: SinkProbe) -> PaddedSinkProbe:
        """What looks at the layers of a padded step of these inputs, a token a row.

        Args:
            shared: where scores, tags and what is met are, and in which dimensions sinks show.
        """
        size = len(inputs.slots)
        tag_row, position, base, require = self._rows[:, :size]
        tags = SinkTags(
            slots=inputs.slots,
            position=position,
            starts=self._index[: size + 1],
            base=base,
            threshold=self._threshold[0, :size],
            tag_row=tag_row,
            remap=self._remap[:size],
            require=require,
            whole=self._whole[:size],
        )
        probe = replace(shared, rows=self._index[:size], slots=inputs.slots, tags=tags)
        return PaddedSinkProbe(probe, self._threshold[:, :size])


@dataclass(frozen=True)
class PaddedSinkProbe:
    """A :class:`~saccade_server.models.probes.ResidualProbe` of all layers, in which rows that do
    not ask, or not in a layer, find nothing.
    """

    probe: SinkProbe  # for the first layer
    thresholds: torch.Tensor  # float32 [layers, rows]
    kind: ClassVar[SiteKind] = SiteKind.RESIDUAL

    @property
    def layers(self) -> frozenset[int]:
        """See :class:`SinkProbe`."""
        return self.probe.layers

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        """See :class:`SinkProbe`."""
        tags = replace(self.probe.tags, threshold=self.thresholds[layer])
        replace(self.probe, tags=tags).observe(layer, hidden)
