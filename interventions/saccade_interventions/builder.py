"""The vocabulary a method writes its plan in; checks every index before a plan exists.

A mistake in a method is a ValueError here, and not a failure inside the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.chains import find_gated_chain, find_mixed_masses
from saccade_interventions.edits import (
    NO_LIMIT,
    Gate,
    HeadEdit,
    MassEdit,
    ResidualEdit,
    ScoreEdit,
    Sites,
    TagRun,
    Vectors,
)
from saccade_interventions.key_weights import LARGEST_KEY_WEIGHT, KeyWeights
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan, find_long_chain
from saccade_interventions.rules import AnyRule, Rule
from saccade_interventions.sites import pairs
from saccade_kernels.controls import (
    CLASSES,
    GATES,
    KEY_WEIGHTS,
    PER_HEAD_CLASSES,
    ControlShape,
)
from saccade_kernels.residual import SiteKind


class PlanBuilder:
    """Collects tags and edits for one prompt; :meth:`build` freezes them.

    Edits that change nothing (strength zero) are dropped, so a neutral method is exactly none.
    """

    def __init__(self, shape: ControlShape, prompt_length: int, question_start: int) -> None:
        self._shape = shape
        self._prompt_length = prompt_length
        self._question_start = question_start
        self._classes = 1
        self._tags: list[TagRun] = []
        self._generated_tag = 0
        self._scores: list[ScoreEdit] = []
        self._masses: list[MassEdit] = []
        self._heads: list[HeadEdit] = []
        self._residuals: list[ResidualEdit] = []
        self._vectors: dict[str, Vectors] = {}
        self._key_weights: list[KeyWeights] = []
        self._rules: dict[type[Rule], AnyRule] = {}

    def new_class(self) -> int:
        """A fresh key class.

        Raises:
            ValueError: more classes than the kernels hold.
        """
        if self._classes == CLASSES:
            raise ValueError(f"a plan has at most {CLASSES} key classes")
        self._classes += 1
        return self._classes - 1

    def tag(self, spans: Iterable[tuple[int, int]]) -> int:
        """Put the prompt positions in ``spans`` (start, end exclusive) into a fresh class."""
        tag = self.new_class()
        for start, end in spans:
            self._positions((start, end))
            self._tags.append(TagRun(start, end, tag))
        return tag

    def tag_generated(self, tag: int) -> None:
        """Give every generated position class ``tag``."""
        self._generated_tag = tag

    def key_weights(self, values: NDArray[np.floating], spans: Iterable[tuple[int, int]]) -> int:
        """Give the prompt positions in ``spans`` values for score edits to add. Returns their slot.

        Args:
            values: [positions of all spans, in their order], kept as float32; 0 changes nothing.
            spans: (start, end exclusive), none of which overlap.

        Raises:
            ValueError: more slots than the kernels hold, a span outside of the prompt, or values
                that are too many, too few, too large or not finite.
        """
        if len(self._key_weights) == KEY_WEIGHTS:
            raise ValueError(f"a plan has at most {KEY_WEIGHTS} slots of key weights")
        places = [self._positions(span) for span in spans]
        found = np.concatenate([np.zeros(0, np.int64), *places])
        if values.shape != found.shape or len(np.unique(found)) < len(found):
            raise ValueError("key weights are one value for each position of spans without overlap")
        if not (np.abs(values) <= LARGEST_KEY_WEIGHT).all():
            raise ValueError(f"key weights are numbers from 0 to {LARGEST_KEY_WEIGHT:g}, or minus")
        whole = np.zeros(self._prompt_length, np.float32)
        whole[found] = values
        self._key_weights.append(KeyWeights.pack(whole))
        return len(self._key_weights) - 1

    def _positions(self, span: tuple[int, int]) -> NDArray[np.int64]:
        start, end = span
        if not 0 <= start < end <= self._prompt_length:
            raise ValueError(f"span {start}:{end} is not inside the prompt")
        return np.arange(start, end)

    def score(
        self,
        sites: Sites,
        classes: Iterable[int],
        phases: tuple[Phase, ...],
        *,
        scale: float = 0.0,
        absolute: float = 0.0,
        bias: float = 0.0,
        slot: int | None = None,
        weight: float = 1.0,
    ) -> None:
        """z' = z + scale z + absolute abs(z) + bias on keys of ``classes``, and + weight times what
        :meth:`key_weights` gave the keys in ``slot``, whatever their class.
        """
        if not sites or not phases:
            return
        if scale or absolute or bias:
            edit = ScoreEdit(sites, phases, tuple(sorted(classes)), scale, absolute, bias)
            self._scores.append(edit)
        if slot is not None:
            edit = ScoreEdit(sites, phases, (), slot=slot, weight=float(weight))
            self._check_slot(edit)
            if edit.weight and self._key_weights[slot].spans:
                self._scores.append(edit)

    def mass(
        self,
        sites: Sites,
        moves: Sequence[tuple[int, int, float]],
        phases: tuple[Phase, ...],
        gates: Sequence[Gate] = (),
    ) -> None:
        """m' = T m where T is the identity plus ``moves``, a list of (to, from, amount)."""
        if len(gates) > GATES:
            raise ValueError(f"a mass edit has at most {GATES} gates")
        transform = np.eye(self._classes)
        self._check_classes(index for to, source, _ in moves for index in (to, source))
        for to, source, amount in moves:
            transform[to, source] += amount
        if (transform < 0).any():
            raise ValueError("a mass transform must not take more mass than there is")
        if not sites or not phases or (transform == np.eye(self._classes)).all():
            return
        rows = tuple(tuple(float(value) for value in row) for row in transform)
        self._masses.append(MassEdit(sites, phases, rows, tuple(gates)))

    def per_head_mass(
        self,
        sites: Sites,
        moves: Sequence[tuple[int, int, float]],
        phases: tuple[Phase, ...],
        gates: Sequence[Gate] = (),
    ) -> None:
        """As :meth:`mass`, in heads with classes of their own (see ``Rule.per_head``)."""
        if len(gates) > GATES or any(len(gate.weights) != PER_HEAD_CLASSES for gate in gates):
            raise ValueError(f"gates: at most {GATES}, with a weight for each of the own classes")
        transform = np.eye(PER_HEAD_CLASSES)
        for to, source, amount in moves:
            transform[to, source] += amount
        if (transform < 0).any():
            raise ValueError("a mass transform must not take more mass than there is")
        if sites and phases and (transform != np.eye(PER_HEAD_CLASSES)).any():
            rows = tuple(tuple(float(value) for value in row) for row in transform)
            self._masses.append(MassEdit(sites, phases, rows, tuple(gates), per_head_classes=True))

    def gate(self, weights: Mapping[int, float], at_least: float) -> Gate:
        """The condition that the masses of the classes, each times its weight, sum so high."""
        self._check_classes(weights)
        # An int is equal but travels as other bytes, which fingerprints are made of.
        row = tuple(float(weights.get(c, 0.0)) for c in range(self._classes))
        return Gate(row, float(at_least))

    def vectors(self, values: NDArray[np.float32] | Vectors) -> str:
        """Bring vectors [rows, size] for edits to name. Returns their digest."""
        packed = values if isinstance(values, Vectors) else Vectors.pack(values)
        self._vectors[packed.digest] = packed
        return packed.digest

    def head(
        self,
        sites: Sites,
        phases: tuple[Phase, ...],
        gain: float = 1.0,
        shift: NDArray[np.float32] | Vectors | None = None,
    ) -> None:
        """o' = gain o + shift for the given heads; ``shift`` is [heads of all sites, head_dim]."""
        count = sum(len(heads) for _, heads in sites)
        values = shift.unpack() if isinstance(shift, Vectors) else shift
        if values is not None and values.shape != (count, self._shape.head_dim):
            raise ValueError(f"shift of {count} heads must be [{count}, {self._shape.head_dim}]")
        if values is not None and not values.any():
            shift = None
        if sites and phases and (gain != 1.0 or shift is not None):
            digest = None if shift is None else self.vectors(shift)
            self._heads.append(HeadEdit(sites, phases, gain, digest))

    def residual(self, *edits: ResidualEdit) -> None:
        """Change what a site holds, along vectors that :meth:`vectors` brought.

        Several edits become one map: all of them read what the site held before the first, their
        changes add, and the norm is kept of the sum. They share a site, phases and ``keep_norm``.
        """
        for edit in edits:
            self._check_residual(edit)
        if len({(e.site, e.layer, e.phases, e.keep_norm) for e in edits}) > 1:
            raise ValueError("edits that are joined share a site, phases and keep_norm")
        acting = [edit for edit in edits if edit.phases and not _is_neutral(edit)]
        if len(acting) == 1 and not acting[0].joined:
            self._residuals += acting
            return
        last = len(acting) - 1
        for at, edit in enumerate(acting):
            keeps = edit.keep_norm and at == last
            self._residuals.append(replace(edit, joined=at > 0, keep_norm=keeps))

    def rule(self, rule: AnyRule) -> None:
        """Let the engine follow a rule; a plan has at most one of each kind."""
        kind = type(rule)
        if kind in self._rules:
            raise ValueError(f"a plan has one rule of a kind, and {kind.__name__} is there")
        self._rules[kind] = rule

    def build(self) -> Plan:
        """Freeze. A plan without edits keeps no tags: there is nothing for them to act on.

        Raises:
            ValueError: a gated mass edit shares a (layer, head, phase) with another one, or an edit
                names a layer, head or class that is not there.
        """
        self._check_edits()
        if find_gated_chain(self._masses):
            raise ValueError("a gated mass edit cannot be chained with another one")
        if find_mixed_masses(self._masses):
            raise ValueError("the masses of a head move by its own classes or by those of the tags")
        if find_long_chain(self._residuals):
            raise ValueError("a site has more edits than one row has room for")
        made = Plan(
            shape=self._shape,
            prompt_length=self._prompt_length,
            question_start=self._question_start,
            classes=self._classes,
            tags=tuple(self._tags),
            generated_tag=self._generated_tag,
            scores=tuple(self._scores),
            masses=tuple(_pad(edit, self._classes) for edit in self._masses),
            heads=tuple(self._heads),
            residuals=tuple(self._residuals),
            vectors=tuple(self._vectors.values()),
            key_weights=tuple(self._key_weights) if self._weighs() else (),
            rules=tuple(self._rules.values()),
        )
        self._check_rules(made)
        if made.acts:
            return made
        return Plan(self._shape, self._prompt_length, self._question_start, classes=1)

    def _weighs(self) -> bool:
        """True if some edit, held by a rule or not, adds key weights."""
        held = (edit for rule in self._rules.values() for edit in rule.edits)
        return any(edit.slot is not None for edit in (*self._scores, *held))

    def _check_edits(self) -> None:
        later = [edit for rule in self._rules.values() for edit in rule.edits]
        edits: tuple[ScoreEdit | MassEdit | HeadEdit, ...]
        edits = (*self._scores, *self._masses, *self._heads, *later)
        for edit in edits:
            for layer, _ in edit.sites:
                if not 0 <= layer < self._shape.layers:
                    raise ValueError(f"there is no layer {layer}")
            _, heads = pairs(edit.sites)
            wrong_heads = heads[(heads < 0) | (heads >= self._shape.heads)]
            if wrong_heads.size:
                raise ValueError(f"there is no head {wrong_heads[0]}")
        for score in (*self._scores, *later):
            self._check_classes(score.classes)
            self._check_slot(score)

    def _check_slot(self, edit: ScoreEdit) -> None:
        if edit.slot is None:
            return
        if not 0 <= edit.slot < len(self._key_weights):
            raise ValueError(f"there is no slot {edit.slot} of key weights")
        if not abs(edit.weight) <= LARGEST_KEY_WEIGHT:
            raise ValueError(f"the weight of a slot is at most {LARGEST_KEY_WEIGHT:g}")

    def _check_residual(self, edit: ResidualEdit) -> None:
        residuals = edit.site is SiteKind.RESIDUAL
        if not 0 <= edit.layer < self._shape.layers + residuals:
            raise ValueError(f"there is no {edit.place}")
        known = self._vectors.get(edit.direction)
        if known is None or not all(0 <= row < known.rows for row in edit.rows):
            raise ValueError("a residual edit names a vector that nobody brought")
        if edit.onto is None and not edit.diagonal and not known.is_unit[edit.row]:
            raise ValueError("the direction of a residual edit is a unit vector")
        finite = isfinite(edit.scale) and isfinite(edit.shift)
        bounds = ((edit.low, edit.high), (edit.above, edit.below))
        if not finite or not all(-NO_LIMIT <= low <= high <= NO_LIMIT for low, high in bounds):
            raise ValueError("a residual edit has finite numbers, and low is not above high")

    def _check_rules(self, plan: Plan) -> None:
        for rule in plan.rules:
            retags = rule.retags()
            if retags is not None:
                self._check_classes(tag for pair in retags.remap for tag in pair)
            rule.check(plan)
        for rule, other in permutations(plan.rules, 2):
            reason = rule.excludes(other)
            if reason is not None:
                why = reason.format(type(rule).__name__, type(other).__name__)
                raise ValueError(f"a plan has one of two rules, not both: {why}")

    def _check_classes(self, classes: Iterable[int]) -> None:
        wrong = next((index for index in classes if not 0 <= index < self._classes), None)
        if wrong is not None:
            raise ValueError(f"there is no key class {wrong}")


def _is_neutral(edit: ResidualEdit) -> bool:
    unlimited = edit.low == -NO_LIMIT and edit.high == NO_LIMIT
    return edit.scale == 1.0 and edit.shift == 0.0 and unlimited


def _pad(edit: MassEdit, classes: int) -> MassEdit:
    """Extend a transform made before later classes existed; new classes keep their mass."""
    if edit.per_head_classes:
        return edit
    transform = np.eye(classes)
    known = len(edit.transform)
    transform[:known, :known] = edit.transform
    rows = tuple(tuple(float(value) for value in row) for row in transform)
    gates = tuple(
        Gate(gate.weights + (0.0,) * (classes - len(gate.weights)), gate.threshold)
        for gate in edit.gates
    )
    return replace(edit, transform=rows, gates=gates)
