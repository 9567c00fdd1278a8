"""Steps that nobody asked for run, cover what kernels are compiled for, and leave no trace."""

from typing import Any

import pytest

from saccade_kernels import ops
from saccade_kernels.controls import Edit
from saccade_server.engine.rules import saliency
from saccade_server.engine.tables import count_classes
from saccade_server.engine.warmup import dummy_plan, dummy_step, warm_up
from saccade_testing import tiny
from saccade_testing.engine import core_with, make_request, run


def test_dummies_hold_pages_of_their_own() -> None:
    chunks = dummy_step([70, 1, 64])
    assert [chunk.sequence.pages for chunk in chunks] == [[1, 2], [3], [4]]
    assert [(chunk.start, chunk.end, chunk.samples) for chunk in chunks] == [
        (0, 70, True),
        (0, 1, True),
        (0, 64, True),
    ]


def test_steps_of_every_kind_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_with("llama")
    seen: list[tuple[int, int, Edit, int]] = []
    edited: list[Any] = []
    forward = core._runner.model.forward

    def note(embeddings: Any, positions: Any, step: Any, *rest: Any) -> Any:
        batch = step.batch
        batch.validate()
        seen.append((batch.num_decodes, len(batch.prefills), batch.edit(3), batch.classes))
        edited.append(step.residuals and step.residuals.sites)
        return forward(embeddings, positions, step, *rest)

    judged: list[Any] = []
    judge = saliency.judge
    masked: list[int] = []
    mask = ops.mask_rows
    monkeypatch.setattr(ops, "mask_rows", lambda *given: (masked.append(1), mask(*given))[1])

    def note_judged(model: Any, rows: Any, *rest: Any) -> Any:
        judged.append(len(rows.at))
        return judge(model, rows, *rest)

    monkeypatch.setattr(saliency, "judge", note_judged)
    monkeypatch.setattr(core._runner.model, "forward", note)
    warm_up(core._runner, 512)
    every = Edit.SCORE | Edit.MASS | Edit.HEAD
    assert seen == [
        (1, 0, Edit.NONE, 1),
        (1, 1, Edit.NONE, 1),
        (1, 1, Edit.HEAD, 1),
        (0, 1, Edit.NONE, 1),
        *((1, 1, every, classes) for classes in (2, 4, 8)),
    ]
    every_site = frozenset(range(3 * 4 + 1))
    assert edited == [None, None, every_site, None, *[every_site] * 3]
    assert len(masked) == len(seen), "every step's draws are held by masks"
    assert judged == [2, 1, 2, 2, 2], "both chunks of edited steps, and the unedited one"


@pytest.mark.parametrize("classes", [1, 2, 4, 8])
def test_a_dummy_plan_has_as_many_classes_as_said(classes: int) -> None:
    shape = core_with("llama")._runner.tables.shape
    assert count_classes(dummy_plan(shape, 64, classes)) == classes


@pytest.mark.parametrize("longest", [1, 2, 7, 512])
def test_an_engine_that_was_warmed_answers_as_one_that_was_not(longest: int) -> None:
    core = core_with("llama", padded_decode=True, overlap=True)
    tables = core._runner.tables
    prompt = tiny.prompt("llama", text=70)
    requests = [
        make_request(prompt, "plain", None, 8),
        make_request(prompt, "edited", dummy_plan(tables.shape, len(prompt.tokens), 3), 8),
    ]
    wanted = run(core_with("llama"), requests)
    core._runner.launch(dummy_step([16] * 16)).wait()
    warm_up(core._runner, longest)
    found = run(core, requests)
    assert {n: r.tokens for n, r in found.items()} == {n: r.tokens for n, r in wanted.items()}
    assert found["edited"].last.receipt == wanted["edited"].last.receipt
    assert core.stats().cache_usage == 0


@pytest.mark.parametrize("overlap", [False, True])
def test_an_engine_for_one_sequence_warms_up_too(overlap: bool) -> None:
    core = core_with("llama", max_num_seqs=1, padded_decode=True, overlap=overlap)
    warm_up(core._runner, 512)
    core._runner.rehearse()
