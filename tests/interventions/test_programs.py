"""Programs made by kinds of heads, and chains found all at once, against the same head by head."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from saccade_interventions.chains import find_gated_chain, find_loud_chain, find_mixed_masses
from saccade_interventions.edits import (
    MOST_GAIN,
    Gate,
    HeadEdit,
    MassEdit,
    ScoreEdit,
    Sites,
    Vectors,
)
from saccade_interventions.phases import PHASES, Phase
from saccade_interventions.plan import Plan
from saccade_interventions.programs import ProgramMaker
from saccade_interventions.rules import MeasuredGains
from saccade_kernels.controls import CLASSES, ControlShape, Program
from saccade_kernels.packed import join

LAYERS, HEADS, DIM = 3, 5, 4
SHAPE = ControlShape(LAYERS, HEADS, DIM)
Rng = np.random.Generator


def some_sites(rng: Rng) -> Sites:
    layers = sorted(rng.choice(LAYERS, rng.integers(1, LAYERS + 1), replace=False).tolist())
    return tuple(
        (layer, tuple(rng.permutation(HEADS)[: rng.integers(0, HEADS + 1)].tolist()))
        for layer in layers
    )


def some_phases(rng: Rng) -> tuple[Phase, ...]:
    return tuple(phase for phase in PHASES if rng.random() < 0.6) or (Phase.LAST,)


def score(rng: Rng) -> ScoreEdit:
    classes = tuple(sorted(rng.choice(CLASSES, rng.integers(1, 4), replace=False).tolist()))
    return ScoreEdit(some_sites(rng), some_phases(rng), classes, *rng.normal(size=3).tolist())


def mass(rng: Rng, gated: bool = False, per_head_classes: bool = False) -> MassEdit:
    size = int(rng.integers(2, CLASSES + 1))
    transform = tuple(map(tuple, rng.uniform(size=(size, size)).tolist()))
    gates = (Gate(tuple(rng.normal(size=size).tolist()), 0.25),) if gated else ()
    return MassEdit(some_sites(rng), some_phases(rng), transform, gates, per_head_classes)


def head(rng: Rng) -> tuple[HeadEdit, Any]:
    sites = some_sites(rng)
    gain = float(rng.choice([0.0, 1.0, -2.0, rng.uniform(0.5, 9)]))
    shift = rng.normal(size=(sum(len(h) for _, h in sites), DIM)).astype(np.float32)
    chosen = shift if rng.random() < 0.5 else None
    digest = None if chosen is None else Vectors.pack(chosen).digest
    return HeadEdit(sites, some_phases(rng), gain, digest), chosen


def apply(program: Program, edit: Any, shift: Any) -> None:
    """What an edit does, one head at a time."""
    at = 0
    for layer, heads in edit.sites:
        for number in heads:
            where = layer, number
            if isinstance(edit, ScoreEdit):
                for tag in edit.classes:
                    program.scale[(*where, tag)] += np.float32(edit.scale)
                    program.absolute[(*where, tag)] += np.float32(edit.absolute)
                    program.bias[(*where, tag)] += np.float32(edit.bias)
            elif isinstance(edit, MassEdit):
                size = len(edit.transform)
                whole = np.eye(CLASSES)
                whole[:size, :size] = edit.transform
                program.transform[where] = (whole @ program.transform[where]).astype(np.float32)
                for index, gate in enumerate(edit.gates):
                    program.gate_weight[(*where, index)][:size] = gate.weights
                    program.gate_threshold[(*where, index)] = gate.threshold
            else:
                program.gain[where] *= np.float32(edit.gain)
                program.shift[where] *= np.float32(edit.gain)
                if shift is not None:
                    program.shift[where] += shift[at]
                at += 1


@pytest.mark.parametrize("seed", range(12))
def test_programs_are_those_of_every_head_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted, maker = Program.identity(SHAPE), ProgramMaker(SHAPE)
    for _ in range(rng.integers(0, 8)):
        kind = rng.integers(3)
        if kind == 0:
            edit: Any = score(rng)
            maker.score(edit)
            apply(wanted, edit, None)
        elif kind == 1:
            edit = mass(rng, gated=bool(rng.integers(2)))
            maker.mass(edit)
            apply(wanted, edit, None)
        else:
            edit, shift = head(rng)
            maker.head(edit, shift)
            apply(wanted, edit, shift)
    made = maker.made()
    found = made.unpack()
    for name, values in vars(wanted).items():
        assert getattr(found, name).tobytes() == values.tobytes(), name
    np.testing.assert_array_equal(made.head_edits, wanted.head_edits())
    assert len(made.gain) == len(np.unique(made.kind)), "no kind that no head is of"


def test_programs_that_travel_together_stay_themselves() -> None:
    rng = np.random.default_rng(1)
    programs = []
    for _ in range(3):
        maker = ProgramMaker(SHAPE)
        maker.score(score(rng))
        maker.head(*head(rng))
        programs.append(maker.made())
    joined = join(programs)
    for at, program in enumerate(programs):
        for (name, values, index), one in zip(joined.fields(), program.fields(), strict=True):
            np.testing.assert_array_equal(values[index[at]], one[1][one[2]], err_msg=name)
    (alone,) = join(programs[:1]).kind
    np.testing.assert_array_equal(alone, programs[0].kind)


def places(edit: Any) -> list[tuple[int, int, Phase]]:
    return [place for layer, heads in edit.sites for place in product((layer,), heads, edit.phases)]


def gated_chain(masses: Sequence[MassEdit]) -> Any:
    seen: dict[Any, MassEdit] = {}
    for edit in masses:
        for place in places(edit):
            other = seen.setdefault(place, edit)
            if other is not edit and (edit.gates or other.gates):
                return other, edit, place
    return None


def mixed_masses(masses: Sequence[MassEdit]) -> Any:
    seen: dict[Any, MassEdit] = {}
    for edit in masses:
        for layer, number, _ in places(edit):
            other = seen.setdefault((layer, number), edit)
            if other.per_head_classes != edit.per_head_classes:
                return other, edit, layer, number
    return None


def loud_chain(gains: Sequence[HeadEdit]) -> Any:
    totals: dict[Any, float] = {}
    for edit in gains:
        for place in places(edit):
            total = totals.get(place, 1.0) * abs(edit.gain)
            totals[place] = total if edit.shift is None else max(total, 1.0)
            if totals[place] > MOST_GAIN:
                return edit, place
    return None


@pytest.mark.parametrize("seed", range(40))
def test_what_cannot_be_chained_is_found_where_it_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 5))
    masses = [mass(rng, rng.random() < 0.3, rng.random() < 0.3) for _ in range(count)]
    gains = [head(rng)[0] for _ in range(count)]
    layers = tuple(rng.choice(LAYERS, 2, replace=False).tolist())
    measured = MeasuredGains(layers, float(rng.uniform(1, 4)), some_phases(rng))
    assert find_gated_chain(masses) == gated_chain(masses)
    assert find_mixed_masses(masses) == mixed_masses(masses)
    for later in ((), measured.later_heads(HEADS)):
        assert find_loud_chain([*gains, *later]) == loud_chain([*gains, *later])


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("question", [0, 1, 4, 8, 9])
def test_phases_of_many_rows_are_those_of_each(length: int, question: int) -> None:
    plan = Plan(ControlShape(1, 1, 1), length, min(question, length), 1)
    for start, end in product(range(12), range(12)):
        found = [phase for phase, rows in plan.phases_of(start, end) for _ in range(rows)]
        assert found == [plan.phase(position) for position in range(start, end)]
        named = [phase for phase, _ in plan.phases_of(start, end)]
        assert len(named) == len(set(named))
