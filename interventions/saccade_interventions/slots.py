"""The key weights of several plans at once, in the slots that a program has.

Scores add, so slots whose values the same heads add the same number of times, in rows of the same
phases, are one slot with the sum of their values. Others stay apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.edits import ScoreEdit, Sites
from saccade_interventions.key_weights import KeyWeights
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.rule_base import Excluded
from saccade_kernels.controls import KEY_WEIGHTS

Use = tuple[Sites, tuple[Phase, ...], float]
"""Heads, phases, and the weight: what one edit makes of a slot."""


class Slots:
    """Which slot of the composed plan each slot of each plan is.

    Raises:
        Excluded: there are not enough; of the first plan that finds none.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._slots: dict[tuple[int, int], int] = {}
        self._joins: set[tuple[int, int]] = set()
        uses: dict[tuple[Use, ...], int] = {}
        values: list[NDArray[np.float32]] = []
        for number, plan in enumerate(plans):
            for slot, own in enumerate(plan.key_weights):
                use = _uses(plan, slot)
                at = None if use is None else uses.get(use)
                if at is None:
                    at = len(values)
                    values.append(np.zeros(plan.prompt_length, np.float32))
                    if use is not None:
                        uses[use] = at
                else:
                    self._joins.add((number, slot))
                if len(values) > KEY_WEIGHTS:
                    raise Excluded(TOO_MANY, number)
                values[at] += own.unpack(plan.prompt_length)
                self._slots[number, slot] = at
        self.key_weights = tuple(map(KeyWeights.pack, values))

    def edit(self, plan: int, edit: ScoreEdit) -> ScoreEdit:
        """One plan's edit; what another edit's slot has taken in is added once, by that edit."""
        if edit.slot is None:
            return edit
        joined = (plan, edit.slot) in self._joins
        weight = 0.0 if joined else edit.weight
        return replace(edit, slot=self._slots[plan, edit.slot], weight=weight)


TOO_MANY = (
    f"{{1}}: the interventions weigh single keys in more than {KEY_WEIGHTS} ways together; those "
    "that act in the same heads and rows count once"
)


def _uses(plan: Plan, slot: int) -> tuple[Use, ...] | None:
    """What a plan's edits make of a slot, in one order; None if a rule may make more of it."""
    if any(edit.slot == slot for rule in plan.rules for edit in rule.edits):
        return None
    own = (edit for edit in plan.scores if edit.slot == slot)
    return tuple(sorted((edit.sites, edit.phases, edit.weight) for edit in own))
