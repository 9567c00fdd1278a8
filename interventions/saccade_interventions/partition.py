"""The key classes of several plans at once: every combination of theirs that can occur.

A position has one class in each plan, a *combination*. Combinations get numbers here; edits and
rules are translated into them by :mod:`saccade_interventions.compose`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade_interventions.context import runs
from saccade_interventions.edits import Gate, MassEdit, TagRun
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.plan import Plan
from saccade_kernels.controls import CLASSES, NEVER_ATTEND

Combination = tuple[int, ...]


class Partition:
    """The combinations that occur: in the prompt, as sinks, in generated text, as recent keys.

    At most one of the plans gives recent keys another class.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._plans = plans
        self._base = np.stack([plan.base_tags() for plan in plans], axis=1)  # [positions, plans]
        self._hidden = (self._base == NEVER_ATTEND).any(axis=1)
        prompt = {tuple(map(int, row)) for row in np.unique(self._base[~self._hidden], axis=0)}
        self._generated = tuple(plan.generated_tag for plan in plans)
        examined = prompt
        if any(plan.sinks and plan.sinks.generated for plan in plans):
            examined = prompt | {self._generated}
        self._as_sink = {found: self._sink(found) for found in examined}
        self._as_recent = {found: self._recent(found) for found in self._reached()}
        occurring = {*prompt, self._generated, *self._as_sink.values(), *self._as_recent.values()}
        self.combinations = sorted(occurring | self._receivers(occurring))
        if len(self.combinations) > CLASSES:
            raise InterventionError(
                Code.CONFLICT,
                f"together the interventions divide the keys into {len(self.combinations)} "
                f"classes; the kernels hold {CLASSES}",
                "interventions",
            )

    @property
    def tags(self) -> tuple[TagRun, ...]:
        """Runs of every class but 0, which is where untagged keys are anyway."""
        tags = [TagRun(*span, NEVER_ATTEND) for span in runs(self._hidden)]
        for number, combination in enumerate(self.combinations[1:], start=1):
            mine = (self._base == combination).all(axis=1)
            tags += [TagRun(*span, number) for span in runs(mine)]
        return tuple(tags)

    @property
    def generated_tag(self) -> int:
        """Class of generated keys."""
        return self.combinations.index(self._generated)

    @property
    def remap(self) -> tuple[tuple[int, int], ...]:
        """(class, class as a sink), where they differ."""
        return self._pairs(self._as_sink)

    @property
    def recent(self) -> tuple[tuple[int, int], ...]:
        """(class, class as a recent key), where they differ."""
        return self._pairs(self._as_recent)

    def members(self, plan: int, tag: int) -> tuple[int, ...]:
        """The classes that are class ``tag`` of one plan."""
        return tuple(n for n, found in enumerate(self.combinations) if found[plan] == tag)

    def divider(self, plan: int, tag: int) -> int | None:
        """Another plan that divides class ``tag`` of this one, None if it is whole."""
        found = [self.combinations[number] for number in self.members(plan, tag)]
        others = (i for i in range(len(self._plans)) if len({tags[i] for tags in found}) > 1)
        return next(others, None)

    def transform(self, plan: int, edit: MassEdit) -> tuple[tuple[float, ...], ...]:
        """The transform of one plan's edit. Receiving classes must not be divided."""
        size = range(len(self.combinations))
        tags = [found[plan] for found in self.combinations]

        def amount(to: int, source: int) -> float:
            same_tag = tags[to] == tags[source] and to != source
            return 0.0 if same_tag else edit.transform[tags[to]][tags[source]]

        return tuple(tuple(amount(to, source) for source in size) for to in size)

    def gate(self, plan: int, gate: Gate) -> Gate:
        """The gate of one plan's edit."""
        weights = tuple(gate.weights[found[plan]] for found in self.combinations)
        return Gate(weights, gate.threshold)

    def _sink(self, found: Combination) -> Combination:
        remaps = [dict(plan.sinks.remap) if plan.sinks else {} for plan in self._plans]
        return tuple(remap.get(tag, tag) for remap, tag in zip(remaps, found, strict=True))

    def _recent(self, found: Combination) -> Combination:
        remaps = [dict(plan.recent.remap) if plan.recent else {} for plan in self._plans]
        return tuple(remap.get(tag, tag) for remap, tag in zip(remaps, found, strict=True))

    def _reached(self) -> set[Combination]:
        """What the keys are that some row may find among its recent ones, sinks included."""
        starts = [plan.recent.start for plan in self._plans if plan.recent]
        if not starts:
            return set()
        start = min(starts)
        base = self._base[start:][~self._hidden[start:]]
        prompt = {tuple(map(int, row)) for row in np.unique(base, axis=0)}
        return {*prompt, *(self._as_sink[found] for found in prompt), self._generated}

    def _pairs(self, changes: dict[Combination, Combination]) -> tuple[tuple[int, int], ...]:
        number = self.combinations.index
        pairs = sorted(changes.items())
        return tuple((number(found), number(other)) for found, other in pairs if found != other)

    def _receivers(self, occurring: set[Combination]) -> set[Combination]:
        """Classes that are moved into or required but no key can have: they stay, empty."""
        return {
            tuple(tag if i == plan else 0 for i in range(len(self._plans)))
            for plan, edited in enumerate(self._plans)
            for tag in _needed(edited)
            if all(found[plan] != tag for found in occurring)
        }


def _needed(plan: Plan) -> set[int]:
    required = {plan.sinks.require} if plan.sinks and plan.sinks.require is not None else set()
    return required.union(*(receiving(edit) for edit in plan.masses))


def receiving(edit: MassEdit) -> list[int]:
    """Classes that get mass from another class; those of single heads are not for plans to know."""
    if edit.partitioned:
        return []
    moved = np.array(edit.transform)
    np.fill_diagonal(moved, 0.0)
    return [int(tag) for tag in np.flatnonzero(moved.any(axis=1))]
