"""A plan: what interventions do to one request, as data the engine can schedule.

A plan says which class every key position has (tags), and which edits which query rows get
(score, mass, head). Query rows fall into four phases by position; each phase of a plan compiles
to one :class:`~saccade_kernels.controls.Program`, one row of the control tables. A plan carries no
method name and no code, is immutable, and has a fingerprint of its content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import product

import msgspec
import numpy as np
from numpy.typing import NDArray

from saccade_kernels.controls import CLASSES, NEVER_ATTEND, ControlShape, Program


class Phase(StrEnum):
    """Where a query row stands. The rows of a sequence are partitioned by these four."""

    PREFIX = "prefix"  # before the question: up to and including the last image
    QUESTION = "question"  # after the last image, without the last prompt row
    LAST = "last"  # the last prompt row, which predicts the first token
    GENERATED = "generated"


ROWS: dict[str, frozenset[Phase]] = {
    "prompt": frozenset({Phase.PREFIX, Phase.QUESTION, Phase.LAST}),
    "question": frozenset({Phase.QUESTION, Phase.LAST}),
    "last": frozenset({Phase.LAST}),
    "generated": frozenset({Phase.GENERATED}),
}
"""What a user may name as rows; several names join with ``+``."""


def parse_rows(rows: str) -> tuple[Phase, ...]:
    """Turn ``"question+generated"`` into phases.

    Raises:
        ValueError: a name is not in :data:`ROWS`.
    """
    chosen: set[Phase] = set()
    for name in rows.split("+"):
        if name not in ROWS:
            known = ", ".join(ROWS)
            raise ValueError(f"unknown rows {name!r}; use one or more of {known}, joined with '+'")
        chosen |= ROWS[name]
    return tuple(phase for phase in Phase if phase in chosen)


Sites = tuple[tuple[int, tuple[int, ...]], ...]
"""(layer, query heads) pairs, layers ascending."""


@dataclass(frozen=True)
class TagRun:
    """Key positions ``start`` to ``end`` (exclusive) of the prompt have class ``tag``."""

    start: int
    end: int
    tag: int


@dataclass(frozen=True)
class Gate:
    """A condition on the class masses m of a query row: weights . m >= threshold."""

    weights: tuple[float, ...]
    threshold: float


@dataclass(frozen=True)
class ScoreEdit:
    """z' = z + scale z + absolute |z| + bias on keys of the given classes, before softmax."""

    sites: Sites
    phases: tuple[Phase, ...]
    classes: tuple[int, ...]
    scale: float = 0.0
    absolute: float = 0.0
    bias: float = 0.0
    source: int = 0


@dataclass(frozen=True)
class MassEdit:
    """m' = transform m where all gates hold, after softmax; proportions inside a class kept."""

    sites: Sites
    phases: tuple[Phase, ...]
    transform: tuple[tuple[float, ...], ...]
    gates: tuple[Gate, ...] = ()
    source: int = 0


@dataclass(frozen=True)
class HeadEdit:
    """o' = gain o, before the output projection."""

    sites: Sites
    phases: tuple[Phase, ...]
    gain: float
    source: int = 0


Edits = ScoreEdit | MassEdit | HeadEdit


@dataclass(frozen=True)
class SinkRule:
    """Sinks found while prefilling change the class of their position, layer by layer.

    Position j is a sink of a layer iff max over ``dims`` of abs(x_j) / RMS(x_j) >= ``threshold``
    (x: residual entering the layer). ``remap`` lists (class, class as a sink). If ``require`` is
    set, a layer where no prompt position got that class keeps its base tags. ``generated``:
    positions after the prompt are examined too.
    """

    threshold: float
    dims: tuple[int, ...]
    layers: tuple[int, ...]
    remap: tuple[tuple[int, int], ...]
    require: int | None = None
    generated: bool = False


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
    sinks: SinkRule | None = None

    @property
    def shape(self) -> ControlShape:
        """Model sizes the programs are made for."""
        return ControlShape(self.layers, self.heads, self.head_dim)

    @property
    def edits(self) -> tuple[Edits, ...]:
        """All edits, score first."""
        return (*self.scores, *self.masses, *self.gains)

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
                _apply_mass(program, mass, self.classes)
        for head in self.gains:
            if phase in head.phases:
                for layer, heads in head.sites:
                    program.gain[layer, list(heads)] *= np.float32(head.gain)
        return program

    def program_key(self, phase: Phase) -> str | None:
        """Content hash of the phase's program, None if its rows are not edited at all."""
        edits = [replace(edit, source=0) for edit in self.edits if phase in edit.phases]
        if not edits:
            return None
        return _digest([self.classes, edits])

    def tags_key(self) -> str:
        """Content hash of the key classes, found sinks included."""
        return _digest([self.tags, self.generated_tag, self.sinks])

    def fingerprint(self) -> str:
        """Content hash of the whole plan for this prompt."""
        return _digest([[self.program_key(phase) for phase in Phase], self.tags_key()])


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


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def _apply_score(program: Program, edit: ScoreEdit) -> None:
    """Score edits all read the unedited score, so their changes add."""
    for layer, heads in edit.sites:
        cells = np.ix_([layer], list(heads), list(edit.classes))
        program.scale[cells] += np.float32(edit.scale)
        program.absolute[cells] += np.float32(edit.absolute)
        program.bias[cells] += np.float32(edit.bias)


def _apply_mass(program: Program, edit: MassEdit, classes: int) -> None:
    """Mass edits chain in order; a gated one is alone, see :func:`find_gated_chain`."""
    transform = np.eye(CLASSES, dtype=np.float64)
    transform[:classes, :classes] = edit.transform
    for layer, heads in edit.sites:
        for head in heads:
            chained = transform @ program.transform[layer, head]
            program.transform[layer, head] = chained.astype(np.float32)
            for index, gate in enumerate(edit.gates):
                program.gate_weight[layer, head, index, :classes] = gate.weights
                program.gate_threshold[layer, head, index] = gate.threshold
