"""Rejecting sequences among others: batches, overlap, padded steps, kernels."""

from typing import Any

import pytest
import torch
from msgspec.structs import replace

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SaliencyRule
from saccade_kernels import ops
from saccade_kernels.controls import ControlShape
from saccade_kernels.gpu import decode, saliency
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import FinishReason
from saccade_server.models.family import serve
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, core_with, make_request, run

RULE = SaliencyRule(
    layers=(1, 2),
    candidates=5,
    draws=3,
    alpha=0.95,
    window=3,
    warmup=1,
    fallback="most_salient",
)


def plan_of(prompt: Any, rule: SaliencyRule = RULE) -> Plan:
    question = max((i.start + i.length for i in prompt.images), default=0)
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), question)
    builder.rule(rule)
    return builder.build()


def workload() -> list[Any]:
    """Requests that reject, greedy and sampled, with different rules, beside plain ones."""
    rules = (
        RULE,
        replace(RULE, candidates=3, layers=(2, 3)),
        None,
        replace(RULE, region="after_image", with_self=False),  # in one pass with the first
    )
    made = []
    for index, text in enumerate((60, 40)):
        prompt = tiny.prompt("llava", images=index % 2, seed=index, text=text)
        for number, rule in enumerate(rules):
            sampling = {"temperature": 0.9, "seed": index} if number % 2 else {}
            chosen = None if rule is None else plan_of(prompt, rule)
            name = f"{index}-{number}"
            made.append(make_request(prompt, name, chosen, 14, ignore_eos=True, **sampling))
    return made


FAST = {"overlap": True, "padded_decode": True}
LIMITS: dict[str, dict[str, int]] = {
    "roomy": {},
    "roomy, as on a GPU": FAST,
    "chunked": {"max_batched_tokens": 20},
    "tight, as on a GPU": {"cache_tokens": 64 * 4, **FAST},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_each_gets_in_a_batch_what_it_gets_alone(limits: dict[str, int]) -> None:
    """Also when sequences are preempted: the history stays, and no row is judged twice."""
    requests = workload()

    def told(result: Any) -> Any:
        receipt = result.last.receipt
        return result.tokens, None if receipt is None else (receipt.counters, receipt.rows)

    quiet = core_with("llava", prefix_caching=False)
    wanted = {r.request_id: told(run(quiet, [r])[r.request_id]) for r in requests}
    core = core_with("llava", **limits)
    for _ in range(2):  # the second time prefixes are cached
        found = run(core, requests)
        assert {name: told(result) for name, result in found.items()} == wanted
    assert ("cache_tokens" in limits) == (core.stats().preemptions > 0)
    assert core.stats().cache_usage == 0


def test_only_it_waits_for_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_with("llama", overlap=True)
    batches: list[list[str]] = []
    launch = core._runner.launch

    def note(chunks: Any, fill: Any) -> Any:
        batches.append(sorted(chunk.sequence.request.request_id for chunk in chunks))
        return launch(chunks, fill)

    monkeypatch.setattr(core._runner, "launch", note)
    prompt = tiny.prompt("llama")
    core.submit(make_request(prompt, "free", None, 6, ignore_eos=True))
    core.submit(make_request(prompt, "held", plan_of(prompt), 3, ignore_eos=True))
    while core.busy:
        core.step()
    both, free = ["free", "held"], ["free"]
    assert batches == [both, free, both, free, both, free]


def test_neighbours_keep_the_padded_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sequence that rejects does not take a batch off the captured graphs."""
    core = core_with("llama", padded_decode=True)
    ordinary: list[int] = []
    inner = core._runner._ordinary

    def note(chunks: Any, fill: Any) -> Any:
        ordinary.append(sum(chunk.length for chunk in chunks))
        return inner(chunks, fill)

    monkeypatch.setattr(core._runner, "_ordinary", note)
    prompt = tiny.prompt("llama")
    requests = [make_request(prompt, n, p, 8) for n, p in (("a", None), ("b", plan_of(prompt)))]
    run(core, requests)
    assert len(ordinary) == 1, "only the prompts"


def test_logits_that_are_not_finite_fail_only_their_own(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny.prompt("llama")
    requests = [
        make_request(prompt, name, plan_of(prompt), 8, ignore_eos=True) for name in ("good", "bad")
    ]
    core = make_core("llama")
    wanted = run(core, requests)["good"].tokens
    logits, count = core._runner.model.logits, iter(range(1000))

    def poisoned(hidden: torch.Tensor, invariant: bool) -> torch.Tensor:
        found = logits(hidden)
        if len(hidden) in (2, 16) and next(count) == 3:  # a step, not what is behind it
            found = found.clone()
            found[1] = float("nan")
        return found

    monkeypatch.setattr(core._runner.model, "logits", poisoned)
    found = run(core, requests)
    assert found["good"].tokens == wanted
    assert found["bad"].last.finish_reason is FinishReason.ERROR


def test_a_neighbour_s_failed_step_fails_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is tried again alone, as a padded one: what the failed one kept is no longer it."""
    core = core_with("llama", padded_decode=True)
    judged = make_request(tiny.prompt("llama"), "judged", plan_of(tiny.prompt("llama")), 8)
    other = make_request(tiny.prompt("llama", seed=1, text=30), "other", None, 3)
    wanted = run(core, [judged])["judged"]
    results = {"judged": [], "other": []}
    forward, failed = core._runner.model.forward, []

    def fail_once(embeddings: torch.Tensor, *rest: Any) -> Any:
        if not failed and len(embeddings) > 16:  # the neighbour's prompt and a row of the other
            failed.append(len(embeddings))
            raise RuntimeError("for the test")
        return forward(embeddings, *rest)

    core.submit(judged)
    for _ in range(4):
        results["judged"] += core.step()
    monkeypatch.setattr(core._runner.model, "forward", fail_once)
    core.submit(other)
    while core.busy:
        for output in core.step():
            results[output.request_id].append(output)
    assert failed
    assert [t for output in results["judged"] for t in output.tokens] == wanted.tokens
    assert results["judged"][-1].receipt == wanted.last.receipt
    assert results["other"][-1].finish_reason is not FinishReason.ERROR


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")
def test_the_kernels_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode and saliency in Triton, interpreted, under autograd and behind a padded step."""

    def answer(**mode: bool) -> Any:
        config = EngineConfig(model="qwen3", max_num_seqs=2, cache_tokens=512, **mode)
        core = EngineCore(serve(tiny.build("qwen3", dtype=torch.float32)), config)
        prompt = tiny.prompt("qwen3", seed=3, text=20)
        plan = plan_of(prompt, replace(RULE, candidates=3, alpha=10.0))
        return run(core, [make_request(prompt, "r", plan, 3, ignore_eos=True)])["r"]

    wanted = answer()

    class Backend(ops._Reference):
        decode = staticmethod(decode.decode)
        saliency = staticmethod(saliency.saliency)

    monkeypatch.setattr(ops, "_backend", lambda query: Backend)
    found = answer(padded_decode=True)
    assert found.tokens == wanted.tokens
    assert found.last.receipt == wanted.last.receipt
    assert any(c.name == "rejections" for c in found.last.receipt.counters)
