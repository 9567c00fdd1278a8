"""The key classes of several plans at once: every combination of theirs that can occur.

A position has one class in each plan, a *combination*. Combinations get numbers here; edits and
rules are translated into them by :mod:`saccade_interventions.compose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.edits import Gate, MassEdit, ScoreEdit, TagRun
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.plan import Plan
from saccade_interventions.rule_base import Excluded, Remap, Rule
from saccade_interventions.rules import KINDS
from saccade_interventions.slots import Slots
from saccade_kernels.controls import CLASSES, NEVER_ATTEND

Combination = tuple[int, ...]

Changes = dict[Combination, Combination]
"""Of combinations, what keys of them become."""

Stretch = tuple[int, int, Combination]
"""Prompt positions, end exclusive, that are of one combination."""


class Partition:
    """The combinations that occur: in the prompt, in generated text, by rules that retag keys.

    Kinds of rules change classes one after the other, in the order in which plans list them.
    """

    def __init__(self, plans: Sequence[Plan], slots: Slots) -> None:
        self._plans = plans
        self.slots = slots
        self._stretches = _stretches([plan.base_tags() for plan in plans])
        prompt = {found for _, _, found in self._visible(0)}
        self._generated = tuple(plan.generated_tag for plan in plans)
        self._changes: dict[type[Rule], Changes] = {}
        generated = {self._generated}
        for kind in KINDS:
            self._changes[kind] = self._changed_by(kind, generated)
        changed = [found for changes in self._changes.values() for found in changes.values()]
        occurring = {*prompt, self._generated, *changed}
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

    def remap(self, kind: type[Rule]) -> Remap:
        """(class, the class that rules of a kind make of it), where they differ."""
        number = self.combinations.index
        pairs = sorted(self._changes[kind].items())
        return tuple((number(found), number(other)) for found, other in pairs if found != other)

    def view(self, plan: int) -> PlanView:
        """How the classes of one plan are called here."""
        return PlanView(self, plan)

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

    def _changed_by(self, kind: type[Rule], generated: set[Combination]) -> Changes:
        """What the rules of a kind make of every combination that they reach.

        They reach what those of the kinds before have made; ``generated``: what generated keys have
        become so far, which grows here.
        """
        rules = [plan.rule(kind) for plan in self._plans]
        retags = [rule.retags() if rule else None for rule in rules]
        there = [some for some in retags if some]
        if not there:
            return {}
        reached = {found for _, _, found in self._visible(min(some.start for some in there))}
        for changes in self._changes.values():
            reached |= {changes[found] for found in reached if found in changes}
        remaps = [dict(some.remap) if some else {} for some in retags]

        def changed(some: set[Combination]) -> Changes:
            return {
                found: tuple(remap.get(tag, tag) for remap, tag in zip(remaps, found, strict=True))
                for found in some
            }

        if not any(some.generated for some in there):
            return changed(reached)
        found = changed(reached | generated)
        generated |= {found[before] for before in generated}
        return found

    def _receivers(self, occurring: set[Combination]) -> set[Combination]:
        """Classes that are moved into or required but no key can have: they stay, empty."""
        return {
            tuple(tag if i == plan else 0 for i in range(len(self._plans)))
            for plan, edited in enumerate(self._plans)
            for tag in _needed(edited)
            if all(found[plan] != tag for found in occurring)
        }


@dataclass(frozen=True)
class PlanView:
    """See :class:`~saccade_interventions.rule_base.PlanClasses`."""

    partition: Partition
    plan: int

    def whole(self, tag: int, reason: str) -> int:
        other = self.partition.divider(self.plan, tag)
        if other is not None:
            raise Excluded(reason, other)
        return self.partition.members(self.plan, tag)[0]

    def score(self, edit: ScoreEdit) -> ScoreEdit:
        classes = [n for tag in edit.classes for n in self.partition.members(self.plan, tag)]
        return replace(self.partition.slots.edit(self.plan, edit), classes=tuple(sorted(classes)))

    def remap(self, kind: type[Rule]) -> Remap:
        return self.partition.remap(kind)


def _stretches(tags: Sequence[NDArray[np.uint8]]) -> list[Stretch]:
    """The combinations of equally long arrays of classes, in order."""
    base = np.stack(tags, axis=1)  # [positions, plans]
    changes = np.flatnonzero((base[1:] != base[:-1]).any(axis=1)) + 1
    starts = [0, *changes.tolist()]
    found = base[starts].tolist()
    ends = [*starts[1:], len(base)]
    return [(start, end, tuple(row)) for start, end, row in zip(starts, ends, found, strict=True)]


def _needed(plan: Plan) -> set[int]:
    retags = [some for rule in plan.rules if (some := rule.retags())]
    required = {some.required for some in retags if some.required is not None}
    return required.union(*(receiving(edit) for edit in plan.masses))


def receiving(edit: MassEdit) -> list[int]:
    """Classes that get mass from another class; those of single heads are not for plans to know."""
    if edit.per_head_classes:
        return []
    moved = np.array(edit.transform)
    np.fill_diagonal(moved, 0.0)
    return [int(tag) for tag in np.flatnonzero(moved.any(axis=1))]
