"""A step launched while the one before it runs: the same tokens, and nothing left behind."""

from typing import Any

import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import Gate
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_kernels.controls import ControlShape
from saccade_server.engine.core import EngineCore
from saccade_server.engine.flight import InFlight
from saccade_server.engine.request import FinishReason
from saccade_testing import tiny
from saccade_testing.engine import core_with, make_request, run

PLAIN = {"overlap": False, "padded_decode": False}
WAYS = [
    {"overlap": True, "padded_decode": False},
    {"overlap": False, "padded_decode": True},
    {"overlap": True, "padded_decode": True},
]


@pytest.fixture(params=WAYS, ids=["overlap", "padded", "both"])
def way(request: pytest.FixtureRequest) -> dict[str, bool]:
    return request.param


def mass_plan(prompt: Any) -> Plan:
    """Moves attention between classes in prompt and answer, and looks for sinks."""
    question = max((i.start + i.length for i in prompt.images), default=0)
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), question)
    image = builder.tag([(i.start, i.start + i.length) for i in prompt.images])
    sink = builder.new_class()
    sites = tuple((layer, (0, 1, 2, 3)) for layer in (1, 2))
    moves = [(sink, sink, -0.5), (image, sink, 0.5)]
    builder.mass(sites, moves, parse_rows("question+generated"), [Gate((0.0, 1.0, 1.0), 0.01)])
    builder.rule(SinkRule(0.8, (3, 11), (1, 2), ((image, sink), (0, sink))))
    return builder.build()


def workload() -> list[Any]:
    """Every kind of sampling, plans, images; most end at a token that cannot be foreseen."""
    # Four of the prompts fill most of a page and outgrow it while they are answered.
    texts = (55, 42, 27, 90, 41, 5)
    prompts = [tiny.prompt("llava", images=i % 3, seed=i, text=n) for i, n in enumerate(texts)]
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "seed": 3},
        {"temperature": 1.5, "top_p": 0.8, "top_k": 20, "min_p": 0.01, "seed": 4},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5},
        {"temperature": 0.8, "frequency_penalty": 0.7, "logit_bias": {20: 2.0}, "logprobs": 3},
        {"logprobs": 5},
    ]
    made = []
    for index, prompt in enumerate(prompts):
        for number, kind in enumerate(kinds):
            plan = mass_plan(prompt) if prompt.images and number % 2 else None
            sampling = {"stop_token_ids": tuple(range(10, 97, 9)), **kind}
            name = f"{index}-{number}"
            made.append(make_request(prompt, name, plan, 7 + 9 * (number % 2), **sampling))
    return made


def told(results: dict[str, Any]) -> dict[str, Any]:
    """All that a client could see."""
    return {
        name: (r.tokens, r.logprobs, r.last.finish_reason, r.last.receipt, r.last.error)
        for name, r in results.items()
    }


def logprobs_are_near(found: Any, wanted: Any) -> bool:
    """Equal but for the last bits of log-probabilities, which padding may change."""
    pairs = zip(found, wanted, strict=True)
    return all(
        a.token == b.token
        and a.logprob == pytest.approx(b.logprob, abs=1e-5)
        and [value for _, value in a.top] == pytest.approx([value for _, value in b.top], abs=1e-5)
        for a, b in pairs
    )


@pytest.mark.parametrize("limits", [{}, {"max_batched_tokens": 24}, {"cache_tokens": 64 * 9}])
def test_clients_cannot_tell_the_difference(way: dict[str, bool], limits: dict[str, int]) -> None:
    """Roomy, chunked, and so tight that sequences are preempted; receipts are equal too."""
    requests = workload()
    # Receipts count rows that were computed, and a page is found by others one step later.
    limits = {**limits, "prefix_caching": False}
    wanted = told(run(core_with("llava", **PLAIN, **limits), requests))
    core = core_with("llava", **way, **limits)
    found = told(run(core, requests))
    assert {reason for _, _, reason, _, _ in wanted.values()} == {"stop", "length"}
    tight = "cache_tokens" in limits
    for name, (tokens, logprobs, reason, receipt, error) in found.items():
        assert (tokens, reason, error) == (wanted[name][0], wanted[name][2], None), name
        assert logprobs_are_near(logprobs, wanted[name][1])
        if receipt is not None:
            assert receipt.rows == wanted[name][3].rows
            assert receipt.moved == wanted[name][3].moved
    assert any(r is not None and r.moved for _, _, _, r, _ in found.values())
    assert not tight or core.stats().preemptions > 0
    assert core.stats().cache_usage == 0
    assert not core._scheduler.rows.programs


@pytest.mark.parametrize("family", ["qwen3", "qwen3_vl"])
def test_other_families(family: str, way: dict[str, bool]) -> None:
    prompts = [tiny.prompt(family, images=i % 2, seed=i, text=5 + 30 * i) for i in range(4)]
    requests = [make_request(p, str(i), None, 20) for i, p in enumerate(prompts)]
    wanted = run(core_with(family, **PLAIN), requests)
    found = run(core_with(family, **way), requests)
    assert {n: r.tokens for n, r in found.items()} == {n: r.tokens for n, r in wanted.items()}


def spy(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Launches and waits of an engine in their order, with the number of the step."""
    seen: list[tuple[str, int]] = []
    numbers: dict[int, int] = {}
    launch, wait = core._runner.launch, InFlight.wait

    def note_launch(chunks: Any, fill: Any) -> InFlight:
        flight = launch(chunks, fill)
        numbers[id(flight)] = len(numbers)
        seen.append(("launch", numbers[id(flight)]))
        return flight

    def note_wait(self: InFlight) -> Any:
        seen.append(("wait", numbers[id(self)]))
        return wait(self)

    monkeypatch.setattr(core._runner, "launch", note_launch)
    monkeypatch.setattr(InFlight, "wait", note_wait)
    return seen


def test_a_step_is_launched_before_the_last_ones_tokens_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = core_with("llama", overlap=True)
    seen = spy(core, monkeypatch)
    run(core, [make_request(tiny.prompt("llama"), "r", None, 4, ignore_eos=True)])
    # max_tokens is known in advance: there is no fifth launch.
    assert seen == [
        ("launch", 0),
        ("launch", 1),
        ("wait", 0),
        ("launch", 2),
        ("wait", 1),
        ("launch", 3),
        ("wait", 2),
        ("wait", 3),
    ]


def test_penalties_wait_for_their_tokens_and_hold_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = core_with("llama", overlap=True)
    batches: list[list[str]] = []
    launch = core._runner.launch

    def note(chunks: Any, fill: Any) -> InFlight:
        batches.append(sorted(chunk.sequence.request.request_id for chunk in chunks))
        return launch(chunks, fill)

    monkeypatch.setattr(core._runner, "launch", note)
    prompt = tiny.prompt("llama")
    core.submit(make_request(prompt, "free", None, 6, ignore_eos=True))
    fixed = make_request(prompt, "held", None, 3, ignore_eos=True, presence_penalty=1.0)
    core.submit(fixed)
    while core.busy:
        core.step()
    both, free = ["free", "held"], ["free"]
    assert batches == [both, free, both, free, both, free]


def test_what_is_computed_behind_an_end_is_dropped() -> None:
    prompt = tiny.prompt("llama")
    free = run(core_with("llama", **PLAIN), [make_request(prompt, "r", None, 9, ignore_eos=True)])
    stop = free["r"].tokens[3]
    core = core_with("llama", overlap=True)
    result = run(core, [make_request(prompt, "r", None, 9, stop_token_ids=(stop,))])["r"]
    wanted = free["r"].tokens[: free["r"].tokens.index(stop) + 1]
    assert result.tokens == wanted
    assert result.last.finish_reason is FinishReason.STOP
    stats = core.stats()
    assert (stats.generated_tokens, stats.cache_usage, stats.running) == (len(wanted), 0, 0)
    # The step that was in flight is landed by whatever comes next.
    again = run(core, [make_request(prompt, "r", None, 9, ignore_eos=True)])["r"]
    assert again.tokens == free["r"].tokens


@pytest.mark.parametrize("steps", range(1, 6))
def test_an_abort_in_flight_hands_pages_and_rows_on(steps: int) -> None:
    """Its pages go at once to a request of the same name, while a step still writes to them."""
    prompt = tiny.prompt("llava", images=1, seed=0, text=70)
    other = tiny.prompt("llava", images=1, seed=7, text=60)
    request = make_request(other, "r", mass_plan(other), 12, ignore_eos=True)
    wanted = run(core_with("llava", **PLAIN), [request])["r"]
    core = core_with("llava", overlap=True, padded_decode=True, cache_tokens=192, max_programs=4)
    core.submit(make_request(prompt, "r", mass_plan(prompt), 50, ignore_eos=True))
    for _ in range(steps):
        core.step()
    aborted = core.abort("r")
    assert aborted.receipt is not None
    assert not core.busy
    assert core.stats().cache_usage == 0
    found = run(core, [request])["r"]
    assert found.tokens == wanted.tokens
    assert found.last.receipt == wanted.last.receipt


def fail_once(core: EngineCore, monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """The forward passes with these numbers raise."""
    forward, count = core._runner.model.forward, iter(range(10**6))

    def sometimes(*args: Any) -> torch.Tensor:
        if next(count) in calls:
            raise RuntimeError("the forward pass failed")
        return forward(*args)

    monkeypatch.setattr(core._runner.model, "forward", sometimes)


@pytest.mark.parametrize("call", range(1, 6))
def test_a_step_that_fails_is_repeated_one_by_one(
    call: int, way: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in flight then is read first, so that every token is known."""
    requests = workload()[:9]
    wanted = told(run(core_with("llava", **PLAIN), requests))
    core = core_with("llava", **way)
    fail_once(core, monkeypatch, {call})
    found = told(run(core, requests))
    assert {n: f[0] for n, f in found.items()} == {n: w[0] for n, w in wanted.items()}
    assert core.stats().cache_usage == 0


def test_one_that_fails_alone_too_is_the_only_one_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = workload()[:4]
    wanted = told(run(core_with("llava", **PLAIN), requests))
    core = core_with("llava", overlap=True)
    fail_once(core, monkeypatch, {3, 5})  # the step, and the second of its chunks alone
    found = told(run(core, requests))
    failed = [name for name, f in found.items() if f[2] == FinishReason.ERROR]
    assert len(failed) == 1
    for name, (tokens, *_) in found.items():
        if name not in failed:
            assert tokens == wanted[name][0]
    assert core.stats().cache_usage == 0


def test_bad_logits_end_a_sequence_that_is_in_flight_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third draw of one row is not finite; the fourth is already running."""
    prompt = tiny.prompt("llama")
    requests = [make_request(prompt, name, None, 8, ignore_eos=True) for name in ("good", "bad")]
    wanted = run(core_with("llama", **PLAIN), requests)["good"].tokens
    core = core_with("llama", overlap=True)
    logits, count = core._runner.model.logits, iter(range(1000))

    def poisoned(hidden: torch.Tensor, invariant: bool) -> torch.Tensor:
        found = logits(hidden).clone()
        if next(count) == 2:
            found[1] = float("nan")
        return found

    monkeypatch.setattr(core._runner.model, "logits", poisoned)
    found = run(core, requests)
    assert found["good"].tokens == wanted
    assert found["bad"].tokens == wanted[:2]
    assert found["bad"].last.finish_reason is FinishReason.ERROR
    assert "finite" in found["bad"].last.error
    assert core.stats().cache_usage == 0
