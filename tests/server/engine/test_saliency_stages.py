"""SGRS behind padded steps: its stages give what ordinary steps do, whoever is beside it."""

from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import ResidualEdit
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SaliencyRule
from saccade_kernels.controls import ControlShape
from saccade_server.engine.rules.saliency import SaliencyHandler
from saccade_server.engine.rules.saliency_stages import Passes
from saccade_testing import tiny
from saccade_testing.engine import core_with, make_request, run

RULE = SaliencyRule(layers=(1, 2), candidates=5, draws=3, alpha=0.95, window=3, warmup=1)
RULES = (
    RULE,
    replace(RULE, layers=(3,), candidates=3),
    replace(RULE, layers=(0, 2), region="after_image", with_self=False),
    replace(RULE, candidates=12),  # more than stages have
)


def plan_of(prompt: Any, rule: SaliencyRule | None, edited: str = "") -> Plan:
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), 4)
    rows = parse_rows("last+generated")
    if edited == "scores":
        sites = tuple((layer, (0, 1, 2, 3)) for layer in (1, 2))
        builder.score(sites, [builder.tag([(1, 6)])], rows, bias=1.0)
    if edited == "residual":
        name = builder.vectors(np.eye(1, 64, dtype=np.float32))
        builder.residual(ResidualEdit(2, rows, name, 0, shift=2.0))
    if rule is not None:
        builder.rule(rule)
    return builder.build()


def crowd(rules: tuple[SaliencyRule, ...], edits: tuple[str, ...]) -> list[Any]:
    """Requests that reject by each rule, greedy and sampled, beside plain and edited ones."""
    made = []
    for number, edited in enumerate(edits):
        prompt = tiny.prompt("llama", seed=number, text=20 + number)
        for index, rule in enumerate((*rules, None)):
            sampling = {"temperature": 0.9, "seed": index} if (index + number) % 2 else {}
            plan = plan_of(prompt, rule, edited) if rule is not None or edited else None
            name = f"{edited} {index}"
            made.append(make_request(prompt, name, plan, 6, ignore_eos=True, **sampling))
    return made


def told(result: Any) -> Any:
    receipt = result.last.receipt
    return result.tokens, None if receipt is None else (receipt.counters, receipt.rows)


CASES = {
    "plain": (RULES[:3], ("",)),
    "edited": (RULES[:2], ("", "scores")),
    "residuals too": (RULES[:1], ("scores", "residual")),
    "too many candidates": (RULES, ("",)),
}


@pytest.mark.parametrize("case", CASES)
def test_stages_give_what_ordinary_steps_do(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And they do it: behind a padded step nothing is queued, but where stages have no room."""
    requests = crowd(*CASES[case])
    quiet = core_with("llama", prefix_caching=False)
    wanted = {r.request_id: told(run(quiet, [r])[r.request_id]) for r in requests}
    assert any(counters for _, of in wanted.values() if of for counters in of[:1])
    queued: list[int] = []
    inner = SaliencyHandler.launched

    def note(self: Any, rows: Any, asked: Any, look: Any) -> Any:
        if look is None and any(a.chunk.start >= a.chunk.sequence.prompt_length for a in asked):
            queued.append(len(asked))
        return inner(self, rows, asked, look)

    monkeypatch.setattr(SaliencyHandler, "launched", note)
    core = core_with("llama", padded_decode=True, overlap=True)
    found = run(core, requests)
    assert {name: told(result) for name, result in found.items()} == wanted
    assert bool(queued) == (case == "too many candidates")


def test_what_memory_held_before_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages' own memory, and the tape but for what a step writes, may hold anything."""
    requests = crowd(RULES[:3], ("", "scores"))
    wanted = {
        name: told(r) for name, r in run(core_with("llama", padded_decode=True), requests).items()
    }
    core = core_with("llama", padded_decode=True)
    handler = core._runner.rules[SaliencyRule]
    passes: Passes = handler._passes
    play = core._runner._decoder.play

    def poisoned(variant: Any) -> None:
        if not hasattr(variant, "stage"):
            for place in passes.outputs.tape._places.values():
                place.fill_(torch.nan)
            passes.back.fill_(torch.nan)
            passes.found.fill_(255)
        play(variant)

    monkeypatch.setattr(core._runner._decoder, "play", poisoned)
    assert {name: told(result) for name, result in run(core, requests).items()} == wanted


def test_a_step_that_failed_leaves_nothing_to_one_whose_rows_have_no_stages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both have one row, which is the first of its step."""
    core = core_with("llama", padded_decode=True)
    failing, *_ = crowd(RULES[:1], ("",))
    *_, request, _ = crowd(RULES[3:], ("", "", ""))  # another prompt, greedy
    wanted = told(run(core, [request])[request.request_id])
    decoder = core._runner._decoder
    play = decoder.play

    def fail(variant: Any) -> None:
        if getattr(variant, "stage", "") == "saliency":
            raise RuntimeError("no memory")
        play(variant)

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "play", fail)
        assert run(core, [failing])[failing.request_id].last.error is not None
    assert told(run(core, [request])[request.request_id]) == wanted
