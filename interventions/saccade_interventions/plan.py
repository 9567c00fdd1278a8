"""A plan: what interventions do to one request, as data the engine can schedule.

A plan says which class every key position has (tags), which edits which query rows get (score,
mass, head, stream), and which rules the engine follows (measure, branch, choose). Query rows fall
into four phases by position; each phase of a plan compiles to one
:class:`~saccade_kernels.controls.Program`, one row of the control tables. A plan carries no method
name and no code, is immutable, and has a fingerprint of its content.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import msgspec
import numpy as np
from numpy.typing import NDArray

from saccade_interventions.edits import (
    MOST_GAIN,
    Edits,
    HeadEdit,
    MassEdit,
    ScoreEdit,
    StreamEdit,
    TagRun,
    Vectors,
)
from saccade_interventions.phases import Phase
from saccade_interventions.rules import (
    ConfidenceRule,
    ContrastRule,
    HeadSinkRule,
    MeasuredGains,
    RecentRule,
    Rules,
    SaliencyRule,
    SinkRule,
    sourced,
)
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, ControlShape, Program
from saccade_kernels.streams import STREAM_EDITS, STREAM_VECTORS, site_of


@dataclass(frozen=True)
class Plan:
    """Everything the engine needs to run a request's interventions. Made by :class:`PlanBuilder`.

    ``question_start`` is the first position of the question, 0 without an image.
    """

    layers: int
    heads: int
    head_dim: int
    prompt_length: int
    question_start: int
    classes: int
    tags: tuple[TagRun, ...] = ()
    generated_tag: int = 0
    scores: tuple[ScoreEdit, ...] = ()
    masses: tuple[MassEdit, ...] = ()
    gains: tuple[HeadEdit, ...] = ()
    streams: tuple[StreamEdit, ...] = ()
    vectors: tuple[Vectors, ...] = ()
    sinks: SinkRule | None = None
    recent: RecentRule | None = None
    head_sinks: HeadSinkRule | None = None
    measured: MeasuredGains | None = None
    contrast: ContrastRule | None = None
    saliency: SaliencyRule | None = None
    confidence: ConfidenceRule | None = None

    @property
    def shape(self) -> ControlShape:
        """Model sizes the programs are made for."""
        return ControlShape(self.layers, self.heads, self.head_dim)

    @property
    def edits(self) -> tuple[Edits, ...]:
        """All edits, score first."""
        return (*self.scores, *self.masses, *self.gains, *self.streams)

    @property
    def rules(self) -> tuple[Rules, ...]:
        """All rules that do something of their own."""
        found = (getattr(self, name) for name in RULE_FIELDS.values())
        return tuple(rule for rule in found if rule is not None)

    @property
    def acts(self) -> bool:
        """False if the plan changes nothing, as with neutral strengths."""
        return bool(self.edits or self.rules)

    @property
    def whole_prompt(self) -> bool:
        """True if a rule needs all prompt rows, of branches too, in one step from the first on."""
        gained = () if self.measured is None else self.measured.phases
        early = Phase.PREFIX in gained or Phase.QUESTION in gained
        return self.head_sinks is not None or early

    @property
    def private(self) -> bool:
        """True if all rows follow what is measured while they run, so that no page can be shared.

        Of ``measured`` only the rows of its phases do; keys of pages from there on say so.
        """
        return self.head_sinks is not None

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
        program = Program.identity(self.shape)
        for score in self.scores:
            if phase in score.phases:
                _apply_score(program, score)
        for mass in self.masses:
            if phase in mass.phases:
                _apply_mass(program, mass)
        for head in self.gains:
            if phase in head.phases:
                _apply_head(program, head, self.vectors_of(head.shift))
        return program

    def vectors_of(self, digest: str | None) -> NDArray[np.float32] | None:
        """The vectors that an edit names, float32 [rows, size]."""
        if digest is None:
            return None
        return next(v for v in self.vectors if v.digest == digest).unpack()

    def program_key(self, phase: Phase) -> str | None:
        """Content hash of the phase's program, None if its rows are not edited at all."""
        edits: list[object]
        edits = [replace(edit, source=0) for edit in self.edits if phase in edit.phases]
        if self.measured is not None and phase in self.measured.phases:
            edits.append(replace(self.measured, source=0))
        if not edits:
            return None
        return _digest([self.classes, edits])

    def tags_key(self) -> str:
        """Content hash of the key classes, found sinks and recent keys included."""
        recent = None if self.recent is None else replace(self.recent, source=0)
        return _digest([self.tags, self.generated_tag, self.sinks, recent])

    def fingerprint(self) -> str:
        """Content hash of the whole plan for this prompt."""
        programs = [self.program_key(phase) for phase in Phase]
        return _digest([programs, self.tags_key(), [sourced(r, 0) for r in self.rules]])


RULE_FIELDS: dict[type, str] = {
    RecentRule: "recent",
    HeadSinkRule: "head_sinks",
    MeasuredGains: "measured",
    ContrastRule: "contrast",
    SaliencyRule: "saliency",
    ConfidenceRule: "confidence",
}
"""Kind of rule -> the field of a plan that holds it."""


def find_gated_chain(
    masses: Sequence[MassEdit],
) -> tuple[MassEdit, MassEdit, tuple[int, int, Phase]] | None:
    """Two edits of one (layer, head, phase), one of them gated, and where; None if all is well.

    The gates of a table row are read once, before its transform: no chain could honour them.
    """
    seen: dict[tuple[int, int, Phase], MassEdit] = {}
    for edit in masses:
        for layer, heads in edit.sites:
            for site in product((layer,), heads, edit.phases):
                other = seen.setdefault(site, edit)
                if other is not edit and (edit.gates or other.gates):
                    return other, edit, site
    return None


def find_long_chain(streams: Sequence[StreamEdit]) -> tuple[StreamEdit, Phase] | None:
    """An edit of a site that already has as many as a row has room for, and of which rows."""
    counts: Counter[tuple[int, Phase]] = Counter()
    for edit in streams:
        site = site_of(edit.site, edit.layer)
        for phase in edit.phases:
            counts[site, phase] += 1
            if counts[site, phase] > STREAM_EDITS:
                return edit, phase
    return None


def find_loud_chain(
    gains: Sequence[HeadEdit], measured: MeasuredGains | None = None
) -> tuple[HeadEdit | MeasuredGains, tuple[int, int, Phase]] | None:
    """The edit that lets chained gains exceed MOST_GAIN at one (layer, head, phase), and where.

    A later gain scales an earlier shift, too, so a shift begins a chain of its own. Any head of the
    measured layers may be chosen.
    """
    totals: dict[tuple[int, int, Phase], float] = {}
    for edit in gains:
        for layer, heads in edit.sites:
            for site in product((layer,), heads, edit.phases):
                total = totals.get(site, 1.0) * abs(edit.gain)
                totals[site] = total if edit.shift is None else max(total, 1.0)
                if totals[site] > MOST_GAIN:
                    return edit, site
    if measured is not None:
        for site, total in totals.items():
            meets = site[0] in measured.layers and site[2] in measured.phases
            if meets and total * abs(measured.gain) > MOST_GAIN:
                return measured, site
    return None


def find_crowd(streams: Sequence[StreamEdit]) -> StreamEdit | None:
    """The first edit that names one vector more than can be in use at a time."""
    seen: set[tuple[str, int]] = set()
    for edit in streams:
        seen.update((edit.direction, row) for row in edit.rows)
        if len(seen) >= STREAM_VECTORS:  # slot 0 is nobody's
            return edit
    return None


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def _apply_score(program: Program, edit: ScoreEdit) -> None:
    """Score edits all read the unedited score, so their changes add."""
    for layer, heads in edit.sites:
        cells = np.ix_([layer], list(heads), list(edit.classes))
        program.scale[cells] += np.float32(edit.scale)
        program.absolute[cells] += np.float32(edit.absolute)
        program.bias[cells] += np.float32(edit.bias)


def _apply_head(program: Program, edit: HeadEdit, shift: NDArray[np.float32] | None) -> None:
    """Head edits chain in order: a later gain also scales an earlier shift."""
    first = 0
    for layer, heads in edit.sites:
        chosen = list(heads)
        program.gain[layer, chosen] *= np.float32(edit.gain)
        program.shift[layer, chosen] *= np.float32(edit.gain)
        if shift is not None:
            program.shift[layer, chosen] += shift[first : first + len(chosen)]
        first += len(chosen)


def find_mixed_masses(masses: Sequence[MassEdit]) -> tuple[MassEdit, MassEdit, int, int] | None:
    """Two edits of one (layer, head) by different kinds of classes, and where; None: all is well.

    A head has the classes of the tags or its own, in all rows.
    """
    seen: dict[tuple[int, int], MassEdit] = {}
    for edit in masses:
        for layer, heads in edit.sites:
            for head in heads:
                other = seen.setdefault((layer, head), edit)
                if other.partitioned != edit.partitioned:
                    return other, edit, layer, head
    return None


def _apply_mass(program: Program, edit: MassEdit) -> None:
    """Mass edits chain in order; a gated one is alone, see :func:`find_gated_chain`."""
    classes = len(edit.transform)
    transform = np.eye(CLASSES, dtype=np.float64)
    transform[:classes, :classes] = edit.transform
    for layer, heads in edit.sites:
        for head in heads:
            chained = transform @ program.transform[layer, head]
            program.transform[layer, head] = chained.astype(np.float32)
            for index, gate in enumerate(edit.gates):
                program.gate_weight[layer, head, index, :classes] = gate.weights
                program.gate_threshold[layer, head, index] = gate.threshold
