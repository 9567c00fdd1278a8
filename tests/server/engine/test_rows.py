"""Table rows: shared by content, given back, never over-committed."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

import pytest

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.phases import Phase, parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import MeasuredGains
from saccade_kernels.controls import ControlShape
from saccade_kernels.packed import PackedProgram
from saccade_server.engine.batch import _spans
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.rows import PlanRows
from saccade_server.engine.sequence import Sequence


class Tables:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.programs: dict[int, PackedProgram] = {}
        self.tags: list[int] = []
        self.expected: dict[int, tuple[int, ...]] = {}

    def write_program(self, row: int, program: PackedProgram) -> None:
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
    assert tables.programs[other.control_row(9)].unpack().bias[1, 0, 1] == 2.0


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


def test_a_row_that_nobody_holds_serves_the_next_with_its_program(tables: Tables) -> None:
    """Found by its fingerprint, whoever compiled it: nothing is made and nothing is written."""
    rows = PlanRows(tables, 4, 4)
    first = sequence(plan(1.0))
    rows.acquire(first)
    held = first.control_row(9)
    rows.release(first)
    assert rows.programs == 0
    tables.programs.clear()
    second = sequence(plan(1.0))
    assert rows.acquire(second)
    assert second.control_row(9) == held
    assert rows.programs == 1
    assert not tables.programs


def test_the_row_that_was_idle_longest_is_given_to_another_program(tables: Tables) -> None:
    rows = PlanRows(tables, 3, 8)
    held = {}
    for strength in (1.0, 2.0, 1.0):  # the first is used once more
        made = sequence(plan(strength))
        assert rows.acquire(made)
        held[strength] = made.control_row(9)
        rows.release(made)
    other, again = sequence(plan(3.0)), sequence(plan(1.0))
    assert rows.acquire(other)
    assert other.control_row(9) == held[2.0]
    assert rows.acquire(again)
    assert again.control_row(9) == held[1.0]
    assert not rows.acquire(sequence(plan(4.0))), "held rows are never taken"


def two_programs(first: float, second: float) -> Plan:
    builder = PlanBuilder(ControlShape(2, 2, 4), 8, 4)
    tag = builder.tag([(1, 3)])
    builder.score(((1, (0, 1)),), [tag], parse_rows("last"), bias=first)
    builder.score(((1, (0, 1)),), [tag], parse_rows("generated"), bias=second)
    return builder.build()


def test_idle_rows_that_are_wanted_are_not_given_up(tables: Tables) -> None:
    """Where one of a plan's programs is idle, the row for the other must be another one."""
    rows = PlanRows(tables, 3, 8)
    first = sequence(two_programs(1.0, 2.0))
    assert rows.acquire(first)
    rows.release(first)
    second = sequence(two_programs(1.0, 3.0))
    assert rows.acquire(second)
    assert second.control_row(7) == 1
    assert second.control_row(9) == 2
    assert tables.programs[2].unpack().bias[1, 0, 1] == 3.0


def test_measured_rows_never_serve_anybody_else(tables: Tables) -> None:
    """Not even the same sequence, or one at its place in memory: gains were written into them."""
    rows = PlanRows(tables, 3, 4)
    made = sequence(measured("last+generated"))
    for _ in range(3):
        tables.programs.clear()
        assert rows.acquire(made)
        assert len(tables.programs) == 1
        rows.release(made)


def test_a_row_that_could_not_be_written_is_not_found_again(tables: Tables) -> None:
    rows = PlanRows(tables, 2, 4)
    write = tables.write_program

    def fails(row: int, program: PackedProgram) -> None:
        raise RuntimeError("no memory")

    tables.write_program = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no memory"):
        rows.acquire(sequence(plan(1.0)))
    tables.write_program = write  # type: ignore[method-assign]
    made = sequence(plan(1.0))
    assert rows.acquire(made)
    assert tables.programs[made.control_row(9)].unpack().bias[1, 0, 1] == 1.0


@pytest.mark.parametrize("question", [0, 3, 8])
def test_runs_of_rows_are_those_of_each_row(question: int, tables: Tables) -> None:
    for made in (plan(1.0), two_programs(1.0, 2.0), two_programs(1.0, 1.0)):
        edited = sequence(replace(made, question_start=question))
        PlanRows(tables, 5, 5).acquire(edited)
        for start in range(10):
            runs = edited.control_runs(start, 11)
            found = [row for row, count in runs for _ in range(count)]
            assert found == [edited.control_row(position) for position in range(start, 11)]
            assert all(one[0] != two[0] for one, two in pairwise(runs))
    assert sequence(None).control_runs(2, 7) == [(0, 5)]


@pytest.mark.parametrize("question", [0, 3, 6])
def test_a_run_knows_how_long_it_is_in_the_whole_prompt(question: int, tables: Tables) -> None:
    """Wherever a chunk begins and ends; rows behind the prompt are a run of no known length."""
    made = replace(two_programs(1.0, 1.0), question_start=question)
    edited = sequence(made)
    edited.tokens += [7, 8, 9]
    PlanRows(tables, 5, 5).acquire(edited)
    rows = [edited.control_row(position) for position in range(8)]
    whole = [len(same) for same in (list(group) for _, group in groupby(rows)) for _ in same]
    for start, end in ((0, 8), (2, 5), (4, 8), (1, 11), (7, 10)):
        chunk = Chunk(edited, start, end - start, False, 0)
        found = list(_spans(chunk, edited.control_runs(start, end)))
        spans = [span for _, count, span in found for _ in range(count)]
        assert spans == [whole[at] if at < 8 else 0 for at in range(start, end)]
        followed = [row for row, count, _ in found for _ in range(count)]
        assert followed == [edited.control_row(at) for at in range(start, end)]
