"""The key classes of several plans at once: every combination of theirs that can occur.

A position has one class in each plan, a *combination*. Combinations get numbers here; edits and
rules are translated into them by :mod:`saccade_interventions.compose`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.edits import Gate, MassEdit, TagRun
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.plan import Plan
from saccade_interventions.rules import RecentRule, SinkRule
from saccade_kernels.controls import CLASSES, NEVER_ATTEND

Combination = tuple[int, ...]

Stretch = tuple[int, int, Combination]
"""Prompt positions, end exclusive, that are of one combination."""


class Partition:
    """The combinations that occur: in the prompt, as sinks, in generated text, as recent keys.

    At most one of the plans gives recent keys another class.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._plans = plans
        self._stretches = _stretches([plan.base_tags() for plan in plans])
        prompt = {found for _, _, found in self._visible(0)}
        self._generated = tuple(plan.generated_tag for plan in plans)
        examined = prompt
        if any(rule and rule.generated for rule in self._sinks()):
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
        numbers = {found: number for number, found in enumerate(self.combinations)}
        tags: list[TagRun] = []
        for start, end, found in self._stretches:
            tag = NEVER_ATTEND if NEVER_ATTEND in found else numbers[found]
            if tags and tags[-1].tag == tag and tags[-1].end == start:
                start = tags.pop().start
            if tag:
                tags.append(TagRun(start, end, tag))
        return tuple(sorted(tags, key=lambda run: run.tag if run.tag != NEVER_ATTEND else 0))

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
        """A plan that tells keys of class ``tag`` of plan ``plan`` apart; None if no plan does."""
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

    def _visible(self, start: int) -> list[Stretch]:
        """The stretches that reach behind ``start`` and that no plan hides."""
        return [
            stretch
            for stretch in self._stretches
            if stretch[1] > start and NEVER_ATTEND not in stretch[2]
        ]

    def _sinks(self) -> list[SinkRule | None]:
        return [plan.rule(SinkRule) for plan in self._plans]

    def _windows(self) -> list[RecentRule | None]:
        return [plan.rule(RecentRule) for plan in self._plans]

    def _sink(self, found: Combination) -> Combination:
        remaps = [dict(rule.remap) if rule else {} for rule in self._sinks()]
        return tuple(remap.get(tag, tag) for remap, tag in zip(remaps, found, strict=True))

    def _recent(self, found: Combination) -> Combination:
        remaps = [dict(rule.remap) if rule else {} for rule in self._windows()]
        return tuple(remap.get(tag, tag) for remap, tag in zip(remaps, found, strict=True))

    def _reached(self) -> set[Combination]:
        """The combinations of keys, sinks included, that the window of some row may contain."""
        starts = [rule.start for rule in self._windows() if rule]
        if not starts:
            return set()
        prompt = {found for _, _, found in self._visible(min(starts))}
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


def _stretches(tags: Sequence[NDArray[np.uint8]]) -> list[Stretch]:
    """The combinations of equally long arrays of classes, in order."""
    base = np.stack(tags, axis=1)  # [positions, plans]
    changes = np.flatnonzero((base[1:] != base[:-1]).any(axis=1)) + 1
    starts = [0, *changes.tolist()]
    found = base[starts].tolist()
    ends = [*starts[1:], len(base)]
    return [(start, end, tuple(row)) for start, end, row in zip(starts, ends, found, strict=True)]


def _needed(plan: Plan) -> set[int]:
    rule = plan.rule(SinkRule)
    required = {rule.require} if rule and rule.require is not None else set()
    return required.union(*(receiving(edit) for edit in plan.masses))


def receiving(edit: MassEdit) -> list[int]:
    """Classes that get mass from another class; those of single heads are not for plans to know."""
    if edit.per_head_classes:
        return []
    moved = np.array(edit.transform)
    np.fill_diagonal(moved, 0.0)
    return [int(tag) for tag in np.flatnonzero(moved.any(axis=1))]
