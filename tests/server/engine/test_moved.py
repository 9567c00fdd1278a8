"""Rows whose masses moved count once each, however often the engine runs them."""

from typing import Any

import pytest
import torch
from msgspec import structs

from saccade_interventions.methods.act import ACT
from saccade_interventions.methods.adaptvis import AdaptVis
from saccade_interventions.methods.sgrs import SGRS
from saccade_interventions.methods.var import VAR
from saccade_server.engine.rules.confidence import decided
from saccade_server.requests.receipts import Run, applied
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, ask, core_with, run

EASY = {"tau": 1.0, "move_fraction": 0.6, "min_visual_mass": 1e-6, "rho": 1e-6}
"""Nearly every row has a sink, and every head with one moves."""

var = VAR(sink_dims=[3, 11], layers=[1, 2, 3], rows="question+last+generated", **EASY)
act = ACT(beta=0.2, heads={"1": [0, 3], "2": [1]}, mode="relative", alpha=1.0, decode="running")
sgrs = SGRS(alpha=0.95, layers=[1, 2])


def edits(methods: Any, request: Any, result: Any) -> dict[str, Any]:
    """Evaluated and moved, of the receipt's first entry."""
    run = Run(request.plan, result.last.receipt, result.last.cached_tokens)
    return applied(methods, methods, [run])[0]["edits"]


@pytest.mark.parametrize("first", [var, act], ids=["var", "act"])
def test_judging_candidates_counts_no_row_again(first: Any, make_core: MakeCore) -> None:
    """A method that never rejects leaves the answer, and so the count, as it was without it."""
    prompt = tiny.prompt("llava", images=1, seed=1, text=30)
    never = SGRS(alpha=1e-9, layers=[1, 2])
    alone, judged = ask(prompt, [first], "alone"), ask(prompt, [first, never], "judged")
    core = make_core("llava", prefix_caching=False)
    wanted = run(core, [alone])["alone"]
    found = run(core, [judged])["judged"]
    assert found.tokens == wanted.tokens
    assert found.last.receipt.counters
    assert wanted.last.receipt.moved
    assert found.last.receipt.moved == wanted.last.receipt.moved
    told = edits([first, never], judged, found)
    assert 0 < told["moved"] <= told["evaluated"]


@pytest.mark.parametrize("budget", [512, 16])
@pytest.mark.parametrize("tokens", [1, 6])
def test_the_row_that_runs_twice_counts_as_it_ran_last(
    tokens: int, budget: int, make_core: MakeCore
) -> None:
    prompt = tiny.prompt("llava", images=1, seed=1, text=30)
    methods = [var, AdaptVis(w1=0.2, w2=3.0)]
    request = ask(prompt, methods, max_tokens=tokens)
    core = make_core("llava", prefix_caching=False, max_batched_tokens=budget)
    found = run(core, [request])["r"]
    (counter,) = found.last.receipt.counters
    _, plan = decided(request.plan, {"unsure": -1.0, "sure": 2.0}[counter.name])
    wanted = run(core, [structs.replace(request, plan=plan)])["r"]
    assert found.tokens == wanted.tokens
    assert found.last.receipt.moved == wanted.last.receipt.moved
    told = edits(methods, request, found)
    assert 0 < told["moved"] <= told["evaluated"]


FAST = {"overlap": True, "padded_decode": True}


@pytest.mark.parametrize("mode", [{}, FAST], ids=["ordinary", "as-on-a-gpu"])
def test_rows_that_preemption_runs_again_count_once(mode: dict[str, bool]) -> None:
    sets = {
        "var": [var],
        "var+sgrs": [var, sgrs],
        "var+adaptvis": [var, AdaptVis(w1=0.2, w2=3.0)],
        "act": [act],
    }
    requests = {}
    for index, name in enumerate(sets):
        for copy in range(2):
            prompt = tiny.prompt("llava", images=1, seed=index + copy, text=40 - 3 * copy)
            requests[f"{name} {copy}"] = ask(prompt, sets[name], f"{name} {copy}", 30)
    quiet = core_with("llava", prefix_caching=False)
    wanted = {name: run(quiet, [request])[name] for name, request in requests.items()}
    core = core_with("llava", cache_tokens=64 * 6, max_batched_tokens=160, **mode)
    found = run(core, list(requests.values()))
    assert core.stats().preemptions > 0
    for name, request in requests.items():
        assert found[name].tokens == wanted[name].tokens
        told = edits(sets[name.split()[0]], request, found[name])
        assert 0 < told["moved"] <= told["evaluated"], name
        if found[name].last.cached_tokens == 0:
            assert found[name].last.receipt.moved == wanted[name].last.receipt.moved, name


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_step_that_fails_and_runs_again_counts_once(
    call: int, make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model had run when the step failed."""
    prompts = [tiny.prompt("llava", images=1, seed=seed) for seed in range(2)]
    requests = [ask(prompt, [var], str(index)) for index, prompt in enumerate(prompts)]
    core = make_core("llava", prefix_caching=False)
    wanted = run(core, requests)
    draw, calls = core._runner._draw, iter(range(1, 1000))

    def failing(*arguments: Any) -> Any:
        if next(calls) == call:
            raise RuntimeError("out of luck")
        return draw(*arguments)

    monkeypatch.setattr(core._runner, "_draw", failing)
    found = run(core, requests)
    for name, result in wanted.items():
        assert found[name].tokens == result.tokens
        assert found[name].last.receipt.moved == result.last.receipt.moved != ()


def test_chunks_end_where_rows_ran_before() -> None:
    """Only of a sequence that counts masses: for all others a step more would be for nothing."""
    core = core_with("llava", prefix_caching=False)
    prompt = tiny.prompt("llava", images=1, seed=1)
    for name, methods in (("counts", [var]), ("plain", [])):
        core.submit(ask(prompt, methods, name, 20))
    for _ in range(4):
        core.step()
    leaders = {leader.request.request_id: leader for leader in core._scheduler.running}
    for leader in leaders.values():
        core._scheduler._preempt(leader)
    chunks = {c.sequence.request.request_id: c for c in core._scheduler.schedule()}
    length = len(prompt.tokens)
    assert chunks["plain"].length == length + 4
    assert chunks["counts"].length == leaders["counts"].counted == length + 3
    assert not chunks["counts"].is_counted
    assert not chunks["counts"].samples


def test_numbers_that_overflow_under_a_plan_are_told_from_a_fault_of_the_model(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny.prompt("llava", images=1, seed=1)
    requests = [ask(prompt, methods, name) for name, methods in (("plan", [var]), ("plain", []))]
    core = make_core("llava")
    logits = core._runner.model.logits
    broken = lambda hidden, invariant: torch.full_like(logits(hidden), torch.nan)
    monkeypatch.setattr(core._runner.model, "logits", broken)
    found = run(core, requests)
    assert {name: r.last.diverged for name, r in found.items()} == {"plan": True, "plain": False}
    assert {r.last.finish_reason for r in found.values()} == {"error"}
    assert not core.busy
