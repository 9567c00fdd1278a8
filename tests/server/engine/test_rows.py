"""Table rows: shared by content, given back, never over-committed."""

from collections.abc import Iterable
from typing import Any

import pytest

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.phases import Phase, parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import MeasuredGains
from saccade_kernels.controls import ControlShape, Program
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.rows import PlanRows
from saccade_server.engine.sequence import Sequence


class Tables:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.programs: dict[int, Program] = {}
        self.tags: list[int] = []
        self.expected: dict[int, tuple[int, ...]] = {}

    def write_program(self, row: int, program: Program) -> None:
        self.programs[row] = program

    def expect_gains(self, row: int, layers: Iterable[int]) -> None:
        self.expected[row] = tuple(layers)

    def open_tags(self, row: int, plan: Plan) -> None:
        self.tags.append(row)


def plan(strength: float, rows: str = "last+generated", length: int = 8) -> Plan:
    builder = PlanBuilder(ControlShape(2, 2, 4), length, 4)
    tag = builder.tag([(1, 3)])
    builder.score(((1, (0, 1)),), [tag], parse_rows(rows), bias=strength)
    return builder.build()


def sequence(plan: Plan | None, length: int = 8) -> Sequence:
    sampling = SamplingParams(max_tokens=1)
    request = GenerateRequest(
        request_id="r", tokens=tuple(range(length)), sampling=sampling, plan=plan
    )
    return Sequence(request)


@pytest.fixture
def tables() -> Tables:
    return Tables()


def test_a_plain_sequence_takes_nothing(tables: Tables) -> None:
    rows = PlanRows(tables, 2, 2)
    plain = sequence(None)
    assert rows.acquire(plain)
    assert plain.tag_row == 0
    assert plain.control_row(7) == 0
    assert not tables.tags


def test_phases_with_one_program_share_a_row(tables: Tables) -> None:
    rows = PlanRows(tables, 5, 5)
    edited = sequence(plan(1.0))
    assert rows.acquire(edited)
    assert rows.programs == 1
    found = [edited.control_row(position) for position in range(10)]
    assert found[:7] == [0] * 7
    assert found[7] == found[8] == found[9] != 0


def test_equal_programs_share_a_row_and_the_last_holder_frees_it(tables: Tables) -> None:
    rows = PlanRows(tables, 2, 4)
    first, second, other = sequence(plan(1.0)), sequence(plan(1.0)), sequence(plan(2.0))
    assert rows.acquire(first)
    assert rows.acquire(second)
    assert first.control_rows == second.control_rows
    assert first.tag_row != second.tag_row
    assert not rows.acquire(other)
    assert other.tag_row == 0
    rows.release(first)
    assert not rows.acquire(other)
    rows.release(second)
    assert rows.acquire(other)
    assert tables.programs[other.control_row(9)].bias[1, 0, 1] == 2.0


def test_no_tag_row_no_admission(tables: Tables) -> None:
    rows = PlanRows(tables, 8, 2)
    assert rows.acquire(sequence(plan(1.0)))
    waiting = sequence(plan(1.0))
    assert not rows.acquire(waiting)
    assert not waiting.control_rows


def test_release_is_idempotent(tables: Tables) -> None:
    rows = PlanRows(tables, 3, 3)
    edited: Any = sequence(plan(1.0))
    rows.acquire(edited)
    rows.release(edited)
    rows.release(edited)
    assert rows.programs == 0
    assert edited.control_row(9) == 0


def test_rows_touched_counts_each_row_once() -> None:
    edited = sequence(plan(1.0))
    edited.count_rows(8)
    edited.count_rows(5)  # recomputed after preemption
    edited.tokens += [1, 2]
    edited.count_rows(10)
    assert edited.rows_touched == {
        Phase.PREFIX: 4,
        Phase.QUESTION: 3,
        Phase.LAST: 1,
        Phase.GENERATED: 2,
    }


def measured(rows: str) -> Plan:
    builder = PlanBuilder(ControlShape(2, 2, 4), 8, 4)
    builder.rule(MeasuredGains((1,), 2.0, parse_rows(rows)))
    return builder.build()


def test_rows_that_are_completed_by_measuring_are_nobody_else_s(tables: Tables) -> None:
    rows = PlanRows(tables, 4, 4)
    first, second = sequence(measured("last+generated")), sequence(measured("last+generated"))
    assert rows.acquire(first)
    assert rows.acquire(second)
    assert first.control_row(7) == first.control_row(9) != 0
    assert second.control_row(7) == second.control_row(9) != first.control_row(7)
    assert first.control_row(3) == first.control_row(6) == 0
    assert tables.expected == {first.control_row(9): (1,), second.control_row(9): (1,)}
    rows.release(first)
    rows.release(second)
    assert rows.programs == 0
