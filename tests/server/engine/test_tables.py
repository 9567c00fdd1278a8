"""Rows written to the device's tables, and how many classes a step has."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import Gate, TagRun
from saccade_interventions.phases import Phase, parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import HeadSinkRule, RecentRule, SinkRule
from saccade_kernels.controls import NEVER_ATTEND, ControlShape, Edit
from saccade_kernels.packed import PackedProgram
from saccade_kernels.residual import ResidualFlag, ResidualProgram
from saccade_kernels.residual_tables import ResidualTables
from saccade_kernels.tables import ControlTables
from saccade_server.engine.tables import DeviceTables, count_classes, sites
from saccade_server.engine.transfer import Uploader
from saccade_testing.tables import write_row

SHAPE = ControlShape(3, 2, 4)
ROWS = parse_rows("question+generated")


def builder() -> PlanBuilder:
    return PlanBuilder(SHAPE, 10, 4)


def scored(tags: int) -> Plan:
    made = builder()
    found = [made.tag([(place, place + 1)]) for place in range(tags)]
    made.score(((1, (0,)),), found, ROWS, bias=1.0)
    return made.build()


@pytest.fixture
def tables() -> DeviceTables:
    cpu = torch.device("cpu")
    return DeviceTables(SHAPE, 5, 5, 32, cpu, hidden_size=8, per_head_rows=2)


@pytest.mark.parametrize("tags", [1, 3, 7])
def test_classes_are_those_that_keys_have(tags: int) -> None:
    assert count_classes(scored(tags)) == tags + 1


def test_hidden_keys_are_no_class_and_generated_keys_may_be() -> None:
    plan = replace(scored(2), tags=(TagRun(0, 3, NEVER_ATTEND),))
    assert count_classes(plan) == 1
    assert count_classes(replace(plan, generated_tag=2)) == 3


def test_what_sinks_become_counts() -> None:
    made = builder()
    tag, sink = made.tag([(0, 3)]), made.new_class()
    made.score(((1, (0,)),), [tag], ROWS, bias=1.0)
    made.rule(SinkRule(0.5, (1,), (1,), ((tag, sink),)))
    assert count_classes(made.build()) == 3


def test_what_recent_keys_become_counts() -> None:
    made = builder()
    near = made.new_class()
    made.score(((1, (0,)),), [near], ROWS, bias=1.0)
    assert count_classes(made.build()) == 1
    made.rule(RecentRule(5, 10, ((0, near),)))
    assert count_classes(made.build()) == 2


def test_a_class_that_only_a_mass_edit_knows_counts() -> None:
    """It has no keys; what it would get goes back to classes the kernels must know are the rest."""
    made = builder()
    tag, empty = made.tag([(0, 3)]), made.new_class()
    made.mass(((1, (0,)),), [(tag, empty, 0.5)], ROWS, [Gate((1.0, 0.0, 0.0), 0.0)])
    assert count_classes(made.build()) == 3


def test_a_step_has_the_classes_of_its_widest_plan(tables: DeviceTables) -> None:
    tables.open_tags(1, scored(1))
    tables.open_tags(2, scored(4))
    assert tables.classes([0, 0]) == 1
    assert tables.classes([0, 1]) == 2
    assert tables.classes([2, 0, 1]) == 5


def test_programs_are_written_as_the_tables_write_them(tables: DeviceTables) -> None:
    program = scored(3).packed(Phase.QUESTION)
    wanted = ControlTables.allocate(5, SHAPE)
    write_row(wanted, 3, program.unpack())
    tables.write_program(3, program)
    for field in fields(ControlTables):
        assert torch.equal(getattr(tables.controls, field.name), getattr(wanted, field.name))
    with pytest.raises(AssertionError):
        tables.write_program(0, program)


def test_a_control_row_edits_residuals_until_it_is_written_again(tables: DeviceTables) -> None:
    program = ResidualProgram.identity(3)
    program.append(9, 2, (0.5, 1.0, -1.0, 2.0), ResidualFlag.SIGNED)
    program.append(1, 5, (1.0, 1.0, -np.inf, np.inf), ResidualFlag.NONE)
    wanted = ResidualTables.allocate(5, 3, 8)
    write_row(wanted, 3, program)
    wanted.bank[2] = torch.arange(8)
    tables.write_program(3, scored(1).packed(Phase.QUESTION))
    assert tables.residual_step([0, 1, 3]) is None
    tables.write_residuals(3, program)
    tables.write_vector(2, np.arange(8, dtype=np.float32))
    for field in fields(ResidualTables):
        assert torch.equal(getattr(tables.residuals, field.name), getattr(wanted, field.name))
    step = tables.residual_step([0, 1, 3])
    assert step is not None
    assert step.sites == {1, 9}
    assert step.tables is tables.residuals
    assert tables.residual_step([0, 1]) is None
    tables.write_program(3, scored(1).packed(Phase.QUESTION))
    assert tables.residual_step([3]) is None
    assert not tables.residuals.count.any()
    with pytest.raises(AssertionError):
        tables.write_residuals(0, program)


def test_a_tag_row_is_written_whole(tables: DeviceTables) -> None:
    """Whatever its former owner left is gone."""
    tables.tags.tags[2].fill_(7)
    tables.tags.weights[2].fill_(1)
    tables.tags.moved[2].fill_(5)
    plan = replace(scored(2), generated_tag=2)
    tables.open_tags(2, plan)
    wanted = [*plan.base_tags().tolist(), *[2] * 22]
    assert tables.tags.tags[2].tolist() == [wanted] * 3
    assert not tables.tags.weights[2].any()
    assert not tables.tags.moved[2].any()
    assert int(tables.tags.hides[2]) == 0
    tables.open_tags(2, replace(plan, tags=(TagRun(1, 2, NEVER_ATTEND),)))
    assert int(tables.tags.hides[2]) == 1
    assert not tables.tags.tags[[0, 1, 3, 4]].any()


def test_weights_of_keys_are_written_where_a_plan_has_them(tables: DeviceTables) -> None:
    """Over what former owners left; of several rows at once, each its own."""
    tables.tags.weights[1:4].fill_(7)
    made = builder()
    slots = [made.key_weights(np.array([at + 0.5, -2.0]), [(at, at + 2)]) for at in (0, 6)]
    for slot in slots:
        made.score(((1, (slot,)),), [], ROWS, slot=slot, weight=2.0)
    for row, plan in ((1, scored(1)), (2, made.build()), (3, scored(2))):
        tables.open_tags(row, plan)
    wanted = torch.zeros(5, 4, 32)
    wanted[2, 0, :2] = torch.tensor([0.5, -2])
    wanted[2, 1, 6:8] = torch.tensor([6.5, -2])
    assert torch.equal(tables.tags.weights, wanted)
    tables.write_program(1, made.build().packed(Phase.GENERATED))
    assert tables.edits([1], hides=False) == (Edit.NONE, Edit.SCORE, Edit.NONE)
    assert tables.controls.weight[1, 1].tolist() == [[2, 0, 0, 0], [0, 2, 0, 0]]
    tables.open_tags(2, scored(1))
    assert not tables.tags.weights.any()


def test_counters_are_a_copy_of_now(tables: DeviceTables) -> None:
    tables.tags.moved[3, 1, 0] = 4
    counted: Any = tables.count_moved([3, 1])
    tables.tags.moved[3, 1, 0] = 9
    assert [tuple(site.__struct_fields__) for site in sites(counted[0].numpy())] == [
        ("layer", "head", "rows")
    ]
    (site,) = sites(counted[0].numpy())
    assert (site.layer, site.head, site.rows) == (1, 0, 4)
    assert sites(np.zeros((3, 2), np.int32)) == ()


def test_gains_to_come_count_as_edits_from_the_start(tables: DeviceTables) -> None:
    """Steps that launch before the gains are known to the host choose kernels that honour them."""
    tables.write_program(1, scored(1).packed(Phase.LAST))
    tables.write_program(2, PackedProgram.identity(SHAPE))
    assert tables.edits([1, 2], hides=False) == (Edit.NONE, Edit.SCORE, Edit.NONE)
    tables.expect_gains(2, (1, 2))
    assert tables.edits([2], hides=False) == (Edit.NONE, Edit.HEAD, Edit.HEAD)
    assert tables.edits([1, 2], hides=False) == (Edit.NONE, Edit.SCORE | Edit.HEAD, Edit.HEAD)
    assert not tables.controls.edits[2].any()
    tables.write_program(2, PackedProgram.identity(SHAPE))  # for the next owner
    assert tables.edits([2], hides=False) == (Edit.NONE,) * 3


def test_head_edits_are_put_back_alone(tables: DeviceTables) -> None:
    made = builder()
    made.score(((1, (0,)),), [made.tag([(0, 1)])], ROWS, bias=1.0)
    made.head(((0, (1,)),), ROWS, 3.0, np.ones((1, 4), np.float32))
    program = made.build().packed(Phase.GENERATED)
    tables.write_program(1, program)
    tables.expect_gains(1, (2,))
    names = [field.name for field in fields(ControlTables)]
    wanted = {name: getattr(tables.controls, name).clone() for name in names}
    tables.controls.gain[1] *= 2
    tables.controls.shift[1] += 1
    tables.controls.edits[1] |= Edit.HEAD
    tables.write_heads(1, program)
    for name, values in wanted.items():
        assert torch.equal(getattr(tables.controls, name), values)
    assert tables.edits([1], hides=False)[2] == Edit.HEAD


def test_all_that_was_said_reaches_the_device_as_one_block(
    tables: DeviceTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of several requests, each table written once, as if they had been written one by one."""
    uploads = []
    send = Uploader.__call__

    def counted(self: Uploader, *arrays: Any) -> Any:
        uploads.append(len(arrays))
        return send(self, *arrays)

    monkeypatch.setattr(Uploader, "__call__", counted)
    residuals = ResidualProgram.identity(3)
    residuals.append(1, 2, (1.0, 1.0, -np.inf, np.inf), ResidualFlag.NONE)
    wanted, written = ControlTables.allocate(5, SHAPE), {}
    for row, strength in ((1, 0.5), (4, 2.0), (2, -3.0)):
        made = builder()
        made.score(((row % 3, (0, 1)),), [made.tag([(0, row)])], ROWS, bias=strength)
        made.head(((1, (1,)),), ROWS, strength, np.full((1, 4), strength, np.float32))
        written[row] = made.build()
        program = written[row].packed(Phase.GENERATED)
        tables.write_program(row, program)
        write_row(wanted, row, program.unpack())
        tables.open_tags(row, written[row])
    tables.write_residuals(4, residuals)
    tables.write_vector(2, np.arange(8, dtype=np.float32))
    tables.write_vector(1, np.ones(8, np.float32))
    assert not uploads
    for field in fields(ControlTables):
        assert torch.equal(getattr(tables.controls, field.name), getattr(wanted, field.name))
    for row, plan in written.items():
        base = plan.base_tags()
        assert (tables.tags.tags[row, :, : len(base)].numpy() == base).all()
    assert tables.residuals.count.nonzero().tolist() == [[4, 1]]
    assert tables.residuals.bank[1:3].tolist() == [[1.0] * 8, list(range(8))]
    assert len(uploads) == 1
    tables.flush()
    assert len(uploads) == 1, "nothing is written twice"


def test_what_is_said_twice_before_a_step_is_what_was_said_last(tables: DeviceTables) -> None:
    """A request that left before its first step, and another that got its rows."""
    left, came = scored(3), replace(scored(1), generated_tag=1)
    residuals = ResidualProgram.identity(3)
    residuals.append(1, 2, (1.0, 1.0, -np.inf, np.inf), ResidualFlag.NONE)
    tables.write_program(1, left.packed(Phase.QUESTION))
    tables.write_residuals(1, residuals)
    tables.open_tags(1, left)
    tables.open_per_head(1, 1, left.with_rules(HeadSinkRule(((0, (1,)),), 0.1)))
    tables.write_program(1, came.packed(Phase.QUESTION))
    tables.open_tags(1, came)
    wanted = ControlTables.allocate(5, SHAPE)
    write_row(wanted, 1, came.program(Phase.QUESTION))
    assert torch.equal(tables.controls.bias, wanted.bias)
    assert not tables.residuals.count.any()
    assert tables.tags.tags[1, 0].tolist() == [*came.base_tags().tolist(), *[1] * 22]
    assert tables.tags.per_head is not None
    assert not tables.tags.per_head.rows.any()
    assert tables.residual_step([1]) is None


def test_what_could_not_be_written_is_written_next_time(
    tables: DeviceTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = scored(1).packed(Phase.QUESTION)
    tables.write_program(1, program)

    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(Uploader, "__call__", fails)
        with pytest.raises(torch.OutOfMemoryError):
            tables.flush()
    assert tables.controls.bias[1].any()
