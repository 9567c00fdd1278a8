"""A plan: what interventions do to one request, as data the engine can schedule.

A plan says which class every key position has (tags) and what single keys weigh (key weights),
which edits which query rows get (score, mass, head, residual), and which rules the engine follows
(measure, branch, choose). Query rows fall into four phases by position; each phase of a plan
compiles to one :class:`~saccade_kernels.controls.Program`, one row of the control tables. A plan
carries no method name and no code, is immutable, and has a fingerprint of its content.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from saccade_interventions.edits import (
    Edits,
    HeadEdit,
    MassEdit,
    ResidualEdit,
    ScoreEdit,
    TagRun,
    Vectors,
)
from saccade_interventions.foreign import ForeignError
from saccade_interventions.key_weights import KeyWeights
from saccade_interventions.needs import Needs, merged
from saccade_interventions.phases import PHASES, Phase
from saccade_interventions.programs import ProgramMaker
from saccade_interventions.rules import KINDS, AnyRule, Rule
from saccade_kernels.controls import NEVER_ATTEND, ControlShape, Program
from saccade_kernels.packed import PackedProgram
from saccade_kernels.residual import RESIDUAL_EDITS, RESIDUAL_VECTORS, site_of

R = TypeVar("R", bound=Rule)

_PLACES = {kind: place for place, kind in enumerate(KINDS)}


@dataclass(frozen=True)
class Plan:
    """Everything the engine needs to run a request's interventions. Made by :class:`PlanBuilder`.

    ``question_start`` is the first position of the question, 0 without an image.
    """

    shape: ControlShape
    prompt_length: int
    question_start: int
    classes: int
    tags: tuple[TagRun, ...] = ()
    generated_tag: int = 0
    scores: tuple[ScoreEdit, ...] = ()
    masses: tuple[MassEdit, ...] = ()
    heads: tuple[HeadEdit, ...] = ()
    residuals: tuple[ResidualEdit, ...] = ()
    vectors: tuple[Vectors, ...] = ()
    key_weights: tuple[KeyWeights, ...] = ()
    rules: tuple[AnyRule, ...] = ()

    def __post_init__(self) -> None:
        order = [_place(type(rule)) for rule in self.rules]
        if len(set(order)) < len(order):
            raise ValueError("a plan has one rule of a kind")
        if order != sorted(order):
            rules = sorted(self.rules, key=lambda rule: _place(type(rule)))
            object.__setattr__(self, "rules", tuple(rules))

    @property
    def edits(self) -> tuple[Edits, ...]:
        """All edits, score first."""
        return (*self.scores, *self.masses, *self.heads, *self.residuals)

    def rule(self, kind: type[R]) -> R | None:
        """The plan's rule of a kind, None without one."""
        found = self._by_kind.get(kind)
        return found if isinstance(found, kind) else None

    @cached_property
    def _by_kind(self) -> Mapping[type[Rule], Rule]:
        return {type(rule): rule for rule in self.rules}

    def with_rules(self, *rules: AnyRule) -> Plan:
        """The same plan with these rules, in place of its own of their kinds."""
        kept = self.without_rules(*map(type, rules)).rules
        return replace(self, rules=(*kept, *rules))

    def without_rules(self, *kinds: type[Rule]) -> Plan:
        """The same plan without its rules of these kinds."""
        return replace(self, rules=tuple(rule for rule in self.rules if type(rule) not in kinds))

    @property
    def acts(self) -> bool:
        """False if the plan changes nothing, as with neutral strengths."""
        return bool(self.edits) or any(not rule.silent for rule in self.rules)

    @cached_property
    def needs(self) -> Needs:
        """What its rules need, all together."""
        return merged(rule.needs() for rule in self.rules)

    def phases_of(self, start: int, end: int) -> list[tuple[Phase, int]]:
        """The phases of the query rows from ``start`` to ``end``, with the number of rows of each.

        Phases without rows are left out; nothing else depends on how many rows there are.
        """
        found, begun = [], start
        for phase, phase_end in self._phase_ends:
            if phase_end >= end:
                break
            if phase_end > begun:
                found.append((phase, phase_end - begun))
                begun = phase_end
        else:
            phase = Phase.GENERATED
        if end > begun:
            found.append((phase, end - begun))
        return found

    @cached_property
    def _phase_ends(self) -> tuple[tuple[Phase, int], ...]:
        """Of the phases of the prompt, in their order, where each ends."""
        last = self.prompt_length - 1
        ends = (min(self.question_start, last), last, last + 1)
        return tuple(zip(PHASES[:3], ends, strict=True))

    def phase(self, position: int) -> Phase:
        """The phase of the query row at ``position`` of the sequence."""
        if position >= self.prompt_length:
            return Phase.GENERATED
        if position == self.prompt_length - 1:
            return Phase.LAST
        return Phase.PREFIX if position < self.question_start else Phase.QUESTION

    def base_tags(self) -> NDArray[np.uint8]:
        """Class of each prompt position before sinks are found: uint8 [prompt_length]."""
        tags = np.zeros(self.prompt_length, np.uint8)
        for run in self.tags:
            tags[run.start : run.end] = run.tag
        return tags

    @cached_property
    def hides(self) -> bool:
        """True if some key may never be attended to."""
        return any(run.tag == NEVER_ATTEND for run in self.tags)

    def program(self, phase: Phase) -> Program:
        """The table row that query rows of ``phase`` follow."""
        return self.packed(phase).unpack()

    def packed(self, phase: Phase) -> PackedProgram:
        """The same by kinds of heads, as it travels to the tables."""
        maker = ProgramMaker(self.shape)
        for score in self.scores:
            if phase in score.phases:
                maker.score(score)
        for mass in self.masses:
            if phase in mass.phases:
                maker.mass(mass)
        for head in self.heads:
            if phase in head.phases:
                maker.head(head, self.vectors_of(head.shift))
        return maker.made()

    def vectors_of(self, digest: str | None) -> NDArray[np.float32] | None:
        """The vectors that an edit names, float32 [rows, size]."""
        if digest is None:
            return None
        return next(v for v in self.vectors if v.digest == digest).unpack()

    @cached_property
    def moved_phases(self) -> frozenset[Phase]:
        """The phases in whose rows a mass edit may move attention, which is counted."""
        return frozenset(phase for edit in self.masses for phase in edit.phases)

    @cached_property
    def program_keys(self) -> Mapping[Phase, str | None]:
        """Fingerprint of each phase's program, None if its rows are not edited at all.

        Programs with equal fingerprints are equal, whoever made their plans, in every process.
        """
        made: list[tuple[tuple[Phase, ...], bytes]]
        made = [(edit.phases, _edit_content(edit)) for edit in self.edits]
        for rule in self.rules:
            own = {phase for phase, _ in rule.needs().own_programs}
            if own:
                made.append((tuple(phase for phase in PHASES if phase in own), _rule_content(rule)))
        classes = _encode(self.classes)
        keys: dict[Phase, str | None] = {}
        for phase in PHASES:
            content = [content for phases, content in made if phase in phases]
            keys[phase] = _digest(classes, *content) if content else None
        return MappingProxyType(keys)

    def program_key(self, phase: Phase) -> str | None:
        """Fingerprint of the phase's program, None if its rows are not edited at all."""
        return self.program_keys[phase]

    @cached_property
    def _tags_key(self) -> str:
        rules = [_rule_content(rule) for rule in self.rules if rule.retags()]
        weights = [slot.digest for slot in self.key_weights]
        return _digest(_encode([self.tags, self.generated_tag, rules, weights]))

    def tags_key(self) -> str:
        """Content hash of key weights and key classes, found sinks and recent keys included."""
        return self._tags_key

    def fingerprint(self) -> str:
        """Content hash of the whole plan for this prompt."""
        programs = [self.program_key(phase) for phase in Phase]
        rules = [_rule_content(rule) for rule in self.rules]
        return _digest(_encode([programs, self.tags_key()]), *rules)


def find_long_chain(residuals: Sequence[ResidualEdit]) -> tuple[ResidualEdit, Phase] | None:
    """An edit of a site that already has as many as a row has room for, and of which rows."""
    counts: Counter[tuple[int, Phase]] = Counter()
    for edit in residuals:
        site = site_of(edit.site, edit.layer)
        for phase in edit.phases:
            counts[site, phase] += 1
            if counts[site, phase] > RESIDUAL_EDITS:
                return edit, phase
    return None


def find_crowd(residuals: Sequence[ResidualEdit]) -> ResidualEdit | None:
    """The first edit that names one vector more than can be in use at a time."""
    seen: set[tuple[str, int]] = set()
    for edit in residuals:
        seen.update((edit.direction, row) for row in edit.rows)
        if len(seen) >= RESIDUAL_VECTORS:  # slot 0 is nobody's
            return edit
    return None


_encode = msgspec.msgpack.Encoder().encode
"""Of two different values, neither's bytes begin with the other's, so they may be joined."""


def _edit_content(edit: Edits) -> bytes:
    """All that an edit says, but not whose it is."""
    nobodys = edit if edit.source == 0 else replace(edit, source=0)
    return _encode([type(edit).__name__, nobodys])


def _rule_content(rule: Rule) -> bytes:
    return _encode(rule.sourced(0))


def _digest(*content: bytes) -> str:
    return hashlib.sha256(b"".join(content)).hexdigest()


def _place(kind: type) -> int:
    """Where rules of a kind come in a plan.

    Raises:
        ForeignError: the engine has no handler for the kind.
    """
    if kind not in _PLACES:
        raise ForeignError("a rule", kind)
    return _PLACES[kind]
