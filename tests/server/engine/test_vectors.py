"""Slots of directions: shared by content, counted, given back, never over-committed."""

from typing import Any

import numpy as np
import pytest

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import ResidualEdit
from saccade_interventions.phases import Phase, parse_rows
from saccade_interventions.plan import Plan
from saccade_kernels.controls import ControlShape
from saccade_kernels.packed import PackedProgram
from saccade_kernels.residual import ResidualFlag, ResidualProgram
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.rows import PlanRows
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.vectors import directions

EYE = np.eye(6, dtype=np.float32)


class Tables:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.residuals: dict[int, ResidualProgram] = {}
        self.vectors: dict[int, list[float]] = {}

    def write_program(self, row: int, program: PackedProgram) -> None:
        self.residuals.pop(row, None)

    def write_residuals(self, row: int, program: ResidualProgram) -> None:
        self.residuals[row] = program

    def write_vector(self, slot: int, values: Any) -> None:
        assert values.flags.writeable  # torch warns of memory that it must not write
        self.vectors[slot] = values.tolist()

    def open_tags(self, row: int, plan: Plan) -> None:
        pass


def plan(vectors: np.ndarray, rows: str = "last+generated", **fields: Any) -> Plan:
    """Adds each vector, one a residual."""
    builder = PlanBuilder(ControlShape(3, 2, 4), 8, 0)
    digest = builder.vectors(vectors)
    for row in range(len(vectors)):
        edit = {"shift": 1.5, **fields}
        builder.residual(ResidualEdit(row, parse_rows(rows), digest, row, **edit))
    return builder.build()


def sequence(plan: Plan) -> Sequence:
    sampling = SamplingParams(max_tokens=1)
    return Sequence(
        GenerateRequest(request_id="r", tokens=tuple(range(8)), sampling=sampling, plan=plan)
    )


@pytest.fixture
def tables() -> Tables:
    return Tables()


def test_a_program_names_the_slots_of_its_vectors(tables: Tables) -> None:
    rows = PlanRows(tables, 5, 5, vectors=9)
    flags = {"signed": True, "relative": True, "keep_norm": True, "low": -2.0, "scale": 0.5}
    edited = sequence(plan(EYE[2:4], "generated", **flags))
    assert rows.acquire(edited)
    program = tables.residuals[edited.control_row(8)]
    assert program.count.tolist() == [1, 0, 0, 1, *[0] * 6]
    for residual in (0, 1):
        site = 3 * residual
        slot = int(program.reads[site, 0])
        assert program.writes[site, 0] == slot
        assert tables.vectors[slot] == EYE[2 + residual].tolist()
        assert program.numbers[site, 0].tolist() == [0.5, 1.5, -2.0, np.inf, -np.inf, np.inf]
        assert program.flags[site, 0] == ResidualFlag(7)
    assert 0 not in tables.vectors
    assert edited.control_row(7) == 0


def test_vectors_are_shared_and_handed_on(tables: Tables) -> None:
    rows = PlanRows(tables, 9, 9, vectors=4)  # three slots
    first, second = sequence(plan(EYE[:3])), sequence(plan(EYE[:3], shift=-2.0))
    assert rows.acquire(first)
    assert rows.acquire(second), "other strengths, the same vectors"
    assert len(tables.vectors) == 3
    third = sequence(plan(EYE[3:4]))
    assert not rows.acquire(third)
    assert (third.tag_row, third.control_rows) == (0, {})
    rows.release(first)
    assert not rows.acquire(third), "the second sequence still follows them"
    rows.release(second)
    assert rows.acquire(third)
    assert (
        tables.vectors[int(tables.residuals[third.control_row(8)].reads[0, 0])] == EYE[3].tolist()
    )
    rows.release(third)
    assert rows.acquire(sequence(plan(EYE[:3]))), "every slot came back"


def test_phases_share_vectors_too(tables: Tables) -> None:
    rows = PlanRows(tables, 9, 9, vectors=4)
    builder = PlanBuilder(ControlShape(3, 2, 4), 8, 0)
    digest = builder.vectors(EYE[:3])
    for phase in Phase:
        for row in range(3):
            shift = 1.0 + list(Phase).index(phase)
            builder.residual(ResidualEdit(row, (phase,), digest, row, shift=shift))
    chosen = builder.build()
    assert len(directions(chosen)) == 3
    made = sequence(chosen)
    assert rows.acquire(made)
    assert len(set(made.control_rows.values())) == 4
    rows.release(made)
    assert rows.acquire(sequence(plan(EYE[3:])))


def test_a_row_that_is_handed_on_edits_no_residuals(tables: Tables) -> None:
    """One control row: steered, then an attention plan."""
    rows = PlanRows(tables, 2, 3, vectors=4)
    steered = sequence(plan(EYE[:1]))
    rows.acquire(steered)
    row = steered.control_row(8)
    rows.release(steered)
    builder = PlanBuilder(ControlShape(3, 2, 4), 8, 0)
    builder.head(((0, (1,)),), parse_rows("last+generated"), 2.0)
    other = sequence(builder.build())
    assert rows.acquire(other)
    assert other.control_row(8) == row
    assert row not in tables.residuals


def test_what_cannot_be_written_is_given_back(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the writes fails, a second try finds every row and slot free."""
    for name in ("write_vector", "write_residuals"):
        rows, edited = PlanRows(tables, 2, 2, vectors=4), sequence(plan(EYE[1:4]))
        write, calls = getattr(tables, name), []

        def fail(slot: int, values: Any, write: Any = write, calls: list[int] = calls) -> None:
            calls.append(slot)
            if len(calls) == (2 if write.__name__ == "write_vector" else 1):
                raise MemoryError("for the test")
            write(slot, values)

        with monkeypatch.context() as patch:
            patch.setattr(tables, name, fail)
            with pytest.raises(MemoryError):
                rows.acquire(edited)
        assert (rows.programs, edited.tag_row, edited.control_rows) == (0, 0, {})
        assert rows.acquire(edited), name
        assert sorted(tables.vectors) == [1, 2, 3]
