"""Contrast behind a padded step: rows of two distributions become one in the leader's place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_interventions.rules import ContrastRule
from saccade_kernels import ops
from saccade_server.engine.batch import Ints
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.seats import Roster
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Parameter, Stage, StepRows, doubling

NUMBERS = Parameter(np.float64, (1.0, 0.0, -np.inf), (3,))
"""Own and other weight, log of the cutoff. Padding's row becomes what it is, normalised."""


class Pairs(NamedTuple):
    """What the leaders of a roster combine, an entry each."""

    own: Ints  # row of p
    other: Ints  # row of q
    numbers: NDArray[np.float64]  # [pairs, 3], of the rules


class ContrastStage(Stage):
    """Contrast with branches."""

    name = "contrast"

    def __init__(self, outputs: StepOutputs) -> None:
        self.sizes = doubling(max(outputs.most // 2, 1))  # a pair takes two rows of the step
        row = Parameter(np.int64, outputs.most)
        self.parameters = (row, row, NUMBERS)
        self._outputs = outputs

    def asked(self, roster: Roster) -> Pairs | None:
        """See :class:`Stage`."""
        found = [
            (row, next(s for s in leader.branches if not s.measures), rule)
            for row, leader, rule in contrasting(roster)
            if rule.early is None
        ]
        if not found:
            return None
        place = {sequence: row for row, sequence in enumerate(roster.sequences)}
        return Pairs(
            np.array([row for row, _, _ in found], np.int64),
            np.array([place[branch] for _, branch, _ in found], np.int64),
            np.array([numbers_of(rule) for _, _, rule in found]),
        )

    def write(self, parameters: list[NDArray[Any]], asked: Pairs, rows: StepRows) -> int:
        """See :class:`Stage`."""
        for array, values in zip(parameters, asked, strict=True):
            array[: len(values)] = values
        return len(asked.own)

    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        """See :class:`Stage`."""
        own, other, numbers = parameters
        outputs = self._outputs
        outputs.mask(own)
        combined = ops.contrast_rows(outputs.logits, own, outputs.logits, other, numbers)
        finite = outputs.finite()
        finite = finite.index_select(0, own) + finite.index_select(0, other)
        outputs.replace(own, combined, finite)


def contrasting(roster: Roster) -> Iterator[tuple[int, Sequence, ContrastRule]]:
    """Rows of leaders whose tokens are drawn from two distributions, with their rules."""
    for row, sequence in enumerate(roster.sequences):
        plan = sequence.plan if sequence.leader is None else None
        rule = plan.rule(ContrastRule) if plan is not None else None
        if rule is not None:
            yield row, sequence, rule


def numbers_of(rule: ContrastRule) -> tuple[float, float, float]:
    """Own and other weight, log of the cutoff."""
    return rule.own, rule.other, math.log(rule.cutoff) if rule.cutoff > 0 else -math.inf
