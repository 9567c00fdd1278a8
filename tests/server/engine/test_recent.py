"""Windows of recent keys: what is written before a step, and that nothing of it stays behind."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import RecentRule, SinkRule
from saccade_kernels.controls import NEVER_ATTEND, ControlShape
from saccade_kernels.tables import TagTable
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.rules.base import Asked, ask
from saccade_server.engine.rules.recent import RecentHandler, WindowStage, window
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Uploader

SHAPE = ControlShape(3, 2, 4)
PROMPT = 10
SINK, NEAR, NEAR_SINK = 1, 2, 3


def plan(width: int = 3, start: int = PROMPT, with_self: bool = False) -> Plan:
    """Keys of class 0 may be sinks of class 1; recent ones are 2 and 3 instead."""
    builder = PlanBuilder(SHAPE, PROMPT, 4)
    classes = [builder.new_class() for _ in range(3)]
    builder.score(((1, (0,)),), classes, parse_rows("generated"), bias=1.0)
    builder.rule(SinkRule(0.5, (1,), (1,), ((0, SINK),)))
    builder.rule(RecentRule(width, start, ((0, NEAR), (SINK, NEAR_SINK)), with_self))
    return builder.build()


def sequence(row: int, chosen: Plan | None) -> Sequence:
    sampling = SamplingParams(max_tokens=50)
    request = GenerateRequest(
        request_id="r", tokens=tuple(range(PROMPT)), plan=chosen, sampling=sampling
    )
    made = Sequence(request)
    made.tag_row = row
    return made


def at(made: Sequence, start: int, length: int = 1) -> Chunk:
    return Chunk(made, start, length, True, 0)


@pytest.fixture
def table() -> TagTable:
    return TagTable.allocate(4, SHAPE, 32)


@pytest.mark.parametrize(
    ("start", "width", "with_self", "row", "wanted"),
    [
        (10, 3, False, 10, (10, 10)),  # the first generated row has nobody before it
        (10, 3, False, 11, (10, 11)),
        (10, 3, False, 15, (12, 15)),
        (10, 3, True, 10, (10, 11)),
        (10, 3, True, 15, (12, 16)),
        (6, 3, False, 10, (7, 10)),
        (6, 30, False, 12, (6, 12)),
        (6, 3, False, 9, (0, 0)),  # a row of the prompt
    ],
)
def test_windows(
    start: int, width: int, with_self: bool, row: int, wanted: tuple[int, int]
) -> None:
    rule = plan(width, start, with_self).rule(RecentRule)
    assert rule is not None
    found = window(row, PROMPT, rule)
    assert range(*found) == range(*wanted)


def handler(table: TagTable) -> RecentHandler:
    """One that writes these tags."""
    cpu = torch.device("cpu")
    parts: Any = SimpleNamespace(tables=SimpleNamespace(tags=table), upload=Uploader(cpu))
    return RecentHandler(parts)


def asked(*chunks: Chunk) -> list[Asked[RecentRule]]:
    """These chunks, as far as their plans have windows."""
    return list(ask(chunks).get(RecentRule, ()))  # type: ignore[arg-type]


def test_the_window_moves_and_each_layer_gets_its_own_classes_back(table: TagTable) -> None:
    """Position 8 is a sink in layer 1, 9 is hidden; neighbours and their rows stay as they are."""
    recent = handler(table)
    table.tags[1, 1, 8] = SINK
    table.tags[1, :, 9] = NEVER_ATTEND
    before = table.tags.clone()
    made = sequence(1, plan(width=3, start=6))
    for row in (10, 11, 12, 13, 14):
        recent.before(asked(at(made, row)))
        wanted = before.clone()
        for key in range(max(6, row - 3), row):
            if key != 9:
                wanted[1, :, key] = NEAR
                wanted[1, 1, key] = NEAR_SINK if key == 8 else NEAR
        assert torch.equal(table.tags, wanted), row
    recent.before(asked(at(made, 0, 10)))  # recomputed from the start
    assert torch.equal(table.tags, before)
    recent.before(asked(at(made, 14)))  # and found again behind cached pages
    assert table.tags[1, 0].nonzero().flatten().tolist() == [9, 11, 12, 13]


def test_a_step_back_and_a_repeated_step(table: TagTable) -> None:
    recent = handler(table)
    made = sequence(2, plan())
    for row in (16, 16, 12, 13):
        recent.before(asked(at(made, row)))
        near = list(range(max(10, row - 3), row))
        assert table.tags[2, 2].nonzero().flatten().tolist() == near


def test_one_write_for_all_sequences_of_a_step(
    table: TagTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = handler(table)
    writes: list[Any] = []
    write = recent.write

    def note(changes: Any) -> None:
        writes.extend([changes] if changes else [])
        write(changes)

    monkeypatch.setattr(recent, "write", note)
    plain = sequence(0, None)
    members = [sequence(1, plan()), sequence(2, plan(5)), sequence(3, plan(2, 6))]
    recent.before(asked(at(plain, 12), *(at(m, 14) for m in members)))
    assert len(writes) == 1
    recent.before(asked(at(plain, 12)))
    assert len(writes) == 1, "steps of others write nothing"
    tagged = [table.tags[row, 0].nonzero().flatten().tolist() for row in range(4)]
    assert tagged == [[], [11, 12, 13], [10, 11, 12, 13], [12, 13]]


def test_a_window_moves_in_the_second_run_of_a_step_that_failed_before_it_was_moved(
    table: TagTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the first run came: to the write, or to the stage that was to do it."""
    recent, made = handler(table), sequence(1, plan())
    recent.before(asked(at(made, 14)))
    with monkeypatch.context() as patch:
        patch.setattr(recent, "write", lambda changes: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            recent.before(asked(at(made, 15)))
    recent.before(asked(at(made, 15)))
    assert table.tags[1, 0].nonzero().flatten().tolist() == [12, 13, 14]

    stage = WindowStage(recent, table.tags, 1)
    roster: Any = SimpleNamespace(sequences=[made])
    rows: Any = SimpleNamespace(starts=np.array([16]))
    memory = [np.zeros((2, *p.shape), p.dtype) for p in stage.parameters]
    for _ in range(2):  # written, but not run; then run
        assert stage.write(memory, stage.asked(roster) or [], rows) == 2
    for _ in range(2):  # and run twice, for what fails may fail behind it
        stage.compute([torch.from_numpy(array) for array in memory], 2)
        assert table.tags[1, 0].nonzero().flatten().tolist() == [13, 14, 15]


def test_whoever_gets_the_row_next_starts_anew(table: TagTable) -> None:
    recent = handler(table)
    first, second = sequence(1, plan()), sequence(1, plan())
    recent.before(asked(at(first, 15)))
    recent.forget(first)
    table.tags[1] = 0  # as opening a row does
    recent.before(asked(at(second, 11)))
    assert table.tags[1, 0].nonzero().flatten().tolist() == [10]


def test_chunks_of_such_a_sequence_end_with_the_prompt() -> None:
    made, plain = sequence(1, plan()), sequence(0, None)
    for computed, wanted, most in ((0, 30, 10), (4, 3, 3), (8, 30, 2), (10, 30, 1), (15, 1, 1)):
        made.computed = plain.computed = computed
        assert made.most(wanted) == most
        assert plain.most(wanted) == wanted
    assert made.most(0) == 0


@pytest.mark.parametrize("garbage", [0, 255])
def test_a_stage_moves_windows_as_single_writes_do(table: TagTable, garbage: int) -> None:
    """Ahead of a padded step; padding, and what lies in its parameters before, changes nothing."""
    table.tags[1, 1, 8] = SINK
    table.tags[3, :, 12] = NEVER_ATTEND
    wanted = TagTable.allocate(4, SHAPE, 32)
    wanted.tags.copy_(table.tags)
    one_by_one, in_stages = handler(wanted), handler(table)
    stage = WindowStage(in_stages, table.tags, 3)
    members = [sequence(1, plan()), sequence(2, plan(5, 6)), sequence(3, plan(2, with_self=True))]
    roster: Any = SimpleNamespace(sequences=[sequence(0, None), *members])
    ran = []
    for row in range(10, 19):
        rows: Any = SimpleNamespace(starts=np.array([4, row, row, row]))
        memory = [np.full((stage.sizes[-1], *p.shape), garbage, p.dtype) for p in stage.parameters]
        count = stage.write(memory, stage.asked(roster), rows)
        size = next(size for size in stage.sizes if size >= count)
        for array, parameter in zip(memory, stage.parameters, strict=True):
            array[count:size] = parameter.padding
        if count:
            stage.compute([torch.from_numpy(array)[:size] for array in memory], size)
        ran.append(count)
        one_by_one.before(asked(*(at(member, row) for member in members)))
        assert torch.equal(table.tags, wanted.tags), row
    assert ran[0] == 5, "at first the window on the prompt's end takes as many keys as are there"
    assert stage.asked(SimpleNamespace(sequences=[sequence(0, None)])) is None  # type: ignore[arg-type]
    assert set(ran[1:]) <= {3, 4, 5, 6}


def test_a_window_that_jumps_is_written_ahead_of_the_stages(table: TagTable) -> None:
    recent = handler(table)
    stage, made = WindowStage(recent, table.tags, 1), sequence(1, plan(6, 4))
    rows: Any = SimpleNamespace(starts=np.array([11]))
    roster: Any = SimpleNamespace(sequences=[made])
    assert stage.write([], stage.asked(roster), rows) == 0
    assert table.tags[1, 2].nonzero().flatten().tolist() == [5, 6, 7, 8, 9, 10]
