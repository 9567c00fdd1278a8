"""Stages around a padded step: parameters, padding, order; and the residuals that steps keep."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saccade_kernels.residual import SiteKind
from saccade_server.engine.decode import PLAIN, StepVariant
from saccade_server.engine.inputs import DecodeInputs
from saccade_server.engine.seats import Roster, Seats
from saccade_server.engine.stages import Parameter, Stage, Stages, StageVariant, StepRows, doubling
from saccade_server.models.exits import ExitProbe
from saccade_testing import steered, tiny
from saccade_testing.engine import core_with, make_request, run

MOST = 6


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 8)), (8, (1, 2, 4, 8))]
)
def test_sizes_double(most: int, sizes: tuple[int, ...]) -> None:
    assert doubling(most) == sizes


class Adding(Stage):
    """Adds numbers to places of a vector; padding adds to the last."""

    def __init__(self, name: str, count: int, ahead: bool = False) -> None:
        self.name, self.ahead, self.count = name, ahead, count
        self.sizes = doubling(MOST)
        self.parameters = (Parameter(np.int64, MOST), Parameter(np.float64, (0.5, 2.0), (2,)))
        self.sums = torch.zeros(MOST + 1, dtype=torch.float64)
        self.asked_for = 0

    def asked(self, roster: Roster) -> Any:
        self.asked_for += 1
        return "something" if self.count >= 0 else None

    def write(self, parameters: list[NDArray[Any]], asked: Any, rows: StepRows) -> int:
        assert asked == "something"
        places, numbers = parameters
        places[: self.count] = np.arange(self.count)
        numbers[: self.count] = [3.0, 4.0]
        return self.count

    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        places, numbers = parameters
        assert (places.shape, numbers.shape) == ((size,), (size, 2))
        self.sums.index_add_(0, places, numbers.prod(-1))


def stand(*stages: Stage) -> tuple[Stages, torch.Tensor, StepRows]:
    """Stages on memory full of garbage, and the rows of a step."""
    made = Stages(stages)
    memory = torch.randint(0, 256, (made.size,), dtype=torch.uint8)
    made.bind(memory)
    roster = Seats(MOST, 3, lambda _: pytest.fail("nobody has a position")).roster([])
    return made, memory, StepRows(roster, np.zeros(0, np.int64), DecodeInputs.empty(MOST, 1, 1))


def test_rows_are_filled_up_with_padding() -> None:
    stage = Adding("a", 3)
    stages, memory, rows = stand(stage)
    (variant,) = stages.write(memory.numpy(), rows, behind=True)
    assert variant == ("a", 4)
    stages.compute(variant)
    assert stage.sums.tolist() == [12.0] * 3 + [0.0] * 3 + [1.0]
    stages.pad(memory.numpy(), StageVariant("a", 8))
    stages.compute(StageVariant("a", 8))
    assert stage.sums.tolist() == [12.0] * 3 + [0.0] * 3 + [9.0]
    with pytest.raises(AssertionError, match="another size"):
        stages.compute(variant)


def test_a_step_runs_the_stages_that_it_asks_for_in_their_order() -> None:
    nobody, silent = Adding("nobody", -1), Adding("silent", 0)
    tables, late, last = Adding("tables", 1, ahead=True), Adding("late", 5), Adding("last", 1)
    stages, memory, rows = stand(nobody, silent, late, tables, last)
    for _ in range(2):
        first = stages.first(rows.roster, behind=True)
        found = stages.write(memory.numpy()[first:], rows, True, first)
        assert found == [("late", 8), ("tables", 1), ("last", 1)]
        assert first == stages._starts["silent"] > 0
    assert [s.asked_for for s in (nobody, silent, late, tables, last)] == [1] * 5
    step = StepVariant(1, PLAIN)
    assert stages.around(step, found) == [("tables", 1), step, ("late", 8), ("last", 1)]
    assert stages.write(memory.numpy(), rows, behind=False) == [("tables", 1)]
    assert stages.first(rows.roster, behind=False) == stages._starts["tables"]
    assert stages.variants[:2] == [("last", 8), ("last", 4)]
    assert {variant.size for variant in stages.largest} == {8}


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_residuals_are_kept_as_probes_see_them(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every form: plain, and edited at residuals, the first too, or elsewhere."""
    prompt = tiny.prompt(family, text=9)
    found: list[list[torch.Tensor]] = [[], []]
    edits = [
        None,
        {**steered.steering("add", "generated"), "layers": [0, 2]},
        {**steered.steering("add", "generated"), "layers": [2], "site": "attention_output"},
    ]
    for padded in (False, True):
        core = core_with(family, padded_decode=padded, overlap=False)
        runner, seen = core._runner, found[padded]
        if padded:
            play = runner._decoder.play

            def note(variant: Any, runner: Any = runner, seen: Any = seen, play: Any = play) -> Any:
                play(variant)
                seen.append(runner._decoder.outputs.residuals[:, : variant.size].clone())

            monkeypatch.setattr(runner._decoder, "play", note)
        else:
            forward = runner.model.forward

            def probe(
                embeddings: Any,
                positions: Any,
                step: Any,
                *rest: Any,
                seen: Any = seen,
                forward: Any = forward,
            ) -> Any:
                looking = ExitProbe(frozenset(range(4)), torch.arange(len(embeddings)))
                output = forward(embeddings, positions, replace(step, probes=(looking,)), *rest)
                if step.batch.num_decodes == len(embeddings):
                    seen.append(torch.stack([looking.seen[layer] for layer in range(4)]))
                return output

            monkeypatch.setattr(runner.model, "forward", probe)
        for number, edit in enumerate(edits):
            plan = None if edit is None else steered.plan_for(core, prompt, [edit])
            requests = [make_request(prompt, f"{number}", plan, 4, ignore_eos=True)]
            run(core, [*requests, make_request(prompt, f"{number}x", None, 4, ignore_eos=True)])
    ordinary, kept = found
    assert len(ordinary) == len(kept) == 3 * len(edits)
    assert ExitProbe.kind is SiteKind.RESIDUAL
    for wanted, got in zip(ordinary, kept, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
    assert not torch.equal(kept[0][0], kept[3][0]), "the embeddings are edited"
