"""One layer's measurement by itself: what goes on, and what is left in the tables."""

from typing import Any

import pytest
import torch

from saccade_kernels.controls import ControlShape, Edit, Program
from saccade_kernels.divergence import Reactivity
from saccade_kernels.tables import ControlTables
from saccade_server.models.attention import AttentionCall
from saccade_server.models.reinforce import Findings, HeadReinforcement
from saccade_testing.tables import write_row

SHAPE = ControlShape(3, 4, 2)
LAYER = 1
WITH = torch.tensor([[1.0, 0], [0, 2], [3, 4], [1, 1]])  # chosen: heads 1 and 2
WITHOUT = torch.tensor([[1.0, 0.5], [0, 0], [3, 1], [9, 9]])


def tables() -> ControlTables:
    """Five rows; row 3 has a gain and a shift of its own, row 4 a score edit."""
    made = ControlTables.allocate(5, SHAPE)
    program = Program.identity(SHAPE)
    program.gain[LAYER] = 0.5
    program.shift[LAYER, 2] = 3.0
    write_row(made, 3, program)
    program = Program.identity(SHAPE)
    program.bias[LAYER, :, 0] = 1.0
    write_row(made, 4, program)
    return made


def call(layer: int) -> AttentionCall:
    nothing: Any = None
    return AttentionCall(*[nothing] * 4, layer, 1.0, 0.0, 0)


def reinforcement(controls: ControlTables, **changes: Any) -> HeadReinforcement:
    """Rows 0 to 3 are the sequence, row 5 its branch; row 4 is a neighbour's."""
    index = {
        "with_image": [3],
        "without": [5],
        "rows": [0, 1, 3, 5],
        "row_pairs": [0, 0, 0, 0],
        "control_rows": [3, 4],
        "control_pairs": [0, 0],
    }
    settings: dict[str, Any] = {
        "layers": frozenset({0, LAYER}),
        "amplified": frozenset({LAYER}),
        "gain": 2.0,
        "reactivity": Reactivity(),
        "controls": controls,
        "findings": Findings(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4, dtype=torch.uint8)),
        **{name: torch.tensor(rows) for name, rows in index.items()},
    }
    return HeadReinforcement(**{**settings, **changes})


def output() -> torch.Tensor:
    rows = torch.randn(6, 4, 2)
    rows[3], rows[5] = WITH, WITHOUT
    return rows


def test_chosen_heads_of_the_given_rows_are_amplified_once() -> None:
    before = output()
    after = reinforcement(tables()).after(call(LAYER), before.clone())
    factor = torch.tensor([1.0, 2.0, 2.0, 1.0])[:, None]
    assert torch.equal(after[[0, 1, 3, 5]], before[[0, 1, 3, 5]] * factor)
    assert torch.equal(after[[2, 4]], before[[2, 4]])


def test_tables_hold_the_product_and_the_shift_grows_with_it() -> None:
    controls = tables()
    reinforcement(controls).after(call(LAYER), output())
    assert controls.gain[3, LAYER].tolist() == [0.5, 1.0, 1.0, 0.5]
    assert controls.shift[3, LAYER, 2].tolist() == [6.0, 6.0]
    assert controls.gain[4, LAYER].tolist() == [1.0, 2.0, 2.0, 1.0]
    score, both = Edit.SCORE, Edit.SCORE | Edit.HEAD
    assert controls.edits[4, LAYER].tolist() == [score, both, both, score]
    assert torch.equal(controls.gain[:3], torch.ones(3, 3, 4))
    assert torch.equal(controls.gain[:, [0, 2]], torch.ones(5, 2, 4))
    assert not controls.edits[:3].any()


def test_a_layer_that_is_only_reported_stays() -> None:
    controls, before = tables(), output()
    measure = reinforcement(controls)
    assert torch.equal(measure.after(call(0), before), before)
    wanted = tables()
    assert torch.equal(controls.gain, wanted.gain)
    assert torch.equal(controls.edits, wanted.edits)
    assert not measure.findings.selected.any()
    found = measure.findings.divergence[0, 0]
    torch.testing.assert_close(found, torch.tensor([0.5, 2.0, 3.0, 128**0.5]))


def test_findings_are_those_of_the_layer() -> None:
    measure = reinforcement(tables())
    measure.after(call(LAYER), output())
    assert measure.findings.selected[0].tolist() == [[0] * 4, [0, 1, 1, 0], [0] * 4]


@pytest.mark.parametrize("gain", [0.0, 1.7])
def test_pairs_are_judged_each_on_its_own(gain: float) -> None:
    """The second pair has the branch's rows swapped, so other heads stand out."""
    controls, rows = tables(), output()
    rows[4] = 3 * WITH.flip(0)
    changes = {
        "with_image": torch.tensor([3, 4]),
        "without": torch.tensor([5, 5]),
        "rows": torch.tensor([3, 4]),
        "row_pairs": torch.tensor([0, 1]),
        "control_pairs": torch.tensor([0, 1]),
        "findings": Findings(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.uint8)),
    }
    measure = reinforcement(controls, gain=gain, **changes)
    after = measure.after(call(LAYER), rows)
    alone = [
        Reactivity().reactive(Reactivity().divergence(rows[[i]], rows[[5]]), rows[[5]])[0]
        for i in (3, 4)
    ]
    assert not torch.equal(alone[0], alone[1])
    for row, chosen in zip((3, 4), alone, strict=True):
        factor = torch.where(chosen, gain, 1.0)
        assert torch.equal(after[row], rows[row] * factor[:, None])
        base = tables().gain[row, LAYER]
        assert torch.equal(controls.gain[row, LAYER], base * factor)


def test_half_precision_is_multiplied_in_float32() -> None:
    """1.7 is no bfloat16; rounding it first would give another product."""
    before = output().bfloat16()
    after = reinforcement(tables(), gain=1.7).after(call(LAYER), before)
    wanted = (before[3].float() * torch.tensor([1.0, 1.7, 1.7, 1.0])[:, None]).bfloat16()
    assert after.dtype is torch.bfloat16
    assert torch.equal(after[3], wanted)
