"""Nothing a request gets depends on its neighbours, on what was cached, or on who failed."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from msgspec.structs import replace as replace_request

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import Gate
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_kernels.controls import NEVER_ATTEND, ControlShape
from saccade_server.engine.origin import Origin
from saccade_server.engine.request import FinishReason
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, make_request, run

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


def plan(prompt: Any, kind: str, strength: float = 1.5) -> Plan:
    """A plan of one kind of edit for a tiny LLaVA prompt."""
    question = max(image.start + image.length for image in prompt.images)
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), question)
    image = builder.tag([(i.start, i.start + i.length) for i in prompt.images])
    sites = tuple((layer, (0, 1, 2, 3)) for layer in (1, 2))
    if kind == "score":
        builder.score(sites, [image], parse_rows("question+generated"), bias=strength)
    elif kind == "prompt":
        builder.score(sites, [image], parse_rows("prompt+generated"), absolute=strength)
    elif kind == "head":
        builder.head(sites, parse_rows("generated"), 1 + strength)
    else:
        sink = builder.new_class()
        moves = [(sink, sink, -0.5), (image, sink, 0.5)]
        builder.mass(sites, moves, parse_rows("question+generated"), [Gate((0.0, 1.0, 1.0), 0.01)])
        builder.rule(SinkRule(0.8, (3, 11), (1, 2), ((image, sink), (0, sink))))
    return builder.build()


KINDS = (None, "score", "prompt", "head", "mass")


def workload(copies: int = 3) -> list[Any]:
    """Mixed plans over few prompts, so that prefixes are shared wherever they may be."""
    # One prompt has a full page to share, the other outgrows its first page while decoding.
    prompts = [tiny.prompt("llava", images=1, seed=text, text=text) for text in (70, 40)]
    made = []
    for copy in range(copies):
        for index, prompt in enumerate(prompts):
            for kind in KINDS:
                chosen = None if kind is None else plan(prompt, kind)
                sampling = {} if copy % 2 else {"temperature": 0.8, "seed": copy}
                name = f"{index}-{kind}-{copy}"
                made.append(make_request(prompt, name, chosen, 9, ignore_eos=True, **sampling))
    return made


def alone(make_core: MakeCore, requests: list[Any]) -> dict[str, list[int]]:
    """Each request on an engine without any other, past or present."""
    return {
        request.request_id: run(make_core("llava", prefix_caching=False), [request])[
            request.request_id
        ].tokens
        for request in requests
    }


@pytest.mark.parametrize("config", [{}, {"max_batched_tokens": 20}, {"cache_tokens": 64 * 7}])
def test_mixed_batches_give_each_what_it_gets_alone(
    config: dict[str, int], make_core: MakeCore
) -> None:
    """Roomy; chunked; and so tight that sequences are preempted and plans re-applied."""
    requests = workload()
    wanted = alone(make_core, requests)
    core = make_core("llava", **config)
    for _ in range(2):  # the second time everything that may be shared is cached
        results = run(core, requests)
        assert {name: result.tokens for name, result in results.items()} == wanted
    if "cache_tokens" in config:
        assert core.stats().preemptions > 0
    assert core.stats().cache_usage == 0
    assert len({tuple(tokens) for tokens in wanted.values()}) > 8, "the plans must matter"


def test_a_neighbours_plan_changes_nothing_bit_for_bit(make_core: MakeCore) -> None:
    """Log-probabilities of a plain request beside edited ones equal those beside plain ones."""
    prompt = tiny.prompt("llava", images=1, seed=0, text=70)
    results = []
    for kind in (None, "mass"):
        chosen = None if kind is None else plan(prompt, kind)
        core = make_core("llava", prefix_caching=False)
        requests = [
            make_request(prompt, "plain", None, 6, logprobs=5, ignore_eos=True),
            make_request(prompt, "other", chosen, 6, ignore_eos=True),
        ]
        results.append(run(core, requests)["plain"].logprobs)
    assert results[0] == results[1]


def test_a_neutral_plan_is_bit_for_bit_none(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llava", images=1, seed=0, text=70)
    neutral = plan(prompt, "score", strength=0.0)
    assert neutral.edits == ()
    found = [
        run(make_core("llava"), [make_request(prompt, "r", chosen, 6, logprobs=5)])["r"].logprobs
        for chosen in (None, neutral)
    ]
    assert found[0] == found[1]


def test_hidden_keys_are_never_seen(make_core: MakeCore) -> None:
    """Hiding the whole image makes its pixels irrelevant to the rows behind it."""
    prompt = tiny.prompt("llava", images=1, seed=0)
    image = prompt.images[0]
    other = tiny.TinyImage(image.start, image.length, image.pixels[::-1].copy(), None)
    answers = []
    for pixels in (image, other):
        shown = tiny.TinyPrompt(prompt.tokens, (pixels,))
        chosen = plan(prompt, "score")
        tags = tuple(replace(tagged, tag=NEVER_ATTEND) for tagged in chosen.tags)
        hidden = replace(chosen, tags=tags, scores=())
        result = run(make_core("llava"), [make_request(shown, "r", hidden, 5, logprobs=1)])["r"]
        answers.append([entry.logprob for entry in result.logprobs])
    assert answers[0] == answers[1]


def test_one_bad_request_fails_alone(make_core: MakeCore, caplog: pytest.LogCaptureFixture) -> None:
    """Pixels of an impossible shape raise inside the forward pass of a mixed batch."""
    good = tiny.prompt("llava", images=1, seed=0)
    image = good.images[0]
    broken = tiny.TinyPrompt(
        good.tokens, (tiny.TinyImage(image.start, image.length, image.pixels[:, :7], None),)
    )
    core = make_core("llava")
    wanted = run(make_core("llava"), [make_request(good, "good")])["good"].tokens
    asked = replace_request(make_request(broken, "bad"), origin=Origin("asked-as", PARENT))
    results = run(core, [asked, make_request(good, "good")])
    assert results["bad"].last.finish_reason is FinishReason.ERROR
    assert results["good"].tokens == wanted
    assert core.stats().cache_usage == 0
    (failed,) = [record for record in caplog.records if "bad" in record.getMessage()]
    assert vars(failed)["fields"] == {"request_id": "asked-as", "trace_id": "ab" * 16}


def test_logits_that_are_not_finite_fail_their_request_only(make_core: MakeCore) -> None:
    good = tiny.prompt("llava", images=1, seed=0)
    image = good.images[0]
    poison = tiny.TinyImage(image.start, image.length, image.pixels * float("nan"), None)
    core = make_core("llava")
    wanted = run(make_core("llava"), [make_request(good, "good")])["good"].tokens
    requests = [
        make_request(tiny.TinyPrompt(good.tokens, (poison,)), "bad"),
        make_request(good, "good"),
    ]
    results = run(core, requests)
    assert results["bad"].last.finish_reason is FinishReason.ERROR
    assert "finite" in results["bad"].last.error
    assert results["good"].tokens == wanted
    assert run(core, [make_request(good, "again")])["again"].tokens == wanted


def test_abort_frees_everything_at_any_moment(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llava", images=1, seed=0, text=70)
    core = make_core("llava", max_batched_tokens=32)
    for steps in range(6):
        core.submit(make_request(prompt, "r", plan(prompt, "mass"), 50, ignore_eos=True))
        for _ in range(steps):
            core.step()
        output = core.abort("r")
        assert output.finish_reason is FinishReason.ABORT
        assert not core.busy
        stats = core.stats()
        assert (stats.cache_usage, stats.running, stats.waiting, stats.plans) == (0, 0, 0, 0)
    assert core.abort("r") is None


def test_requests_that_cannot_run_are_refused_at_once(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llava", images=0)
    core = make_core("llava", max_model_len=64)
    long = make_request(prompt, "long", None, 1000)
    assert "limit" in core.submit(long).error
    foreign = PlanBuilder(ControlShape(2, 4, 16), len(prompt.tokens), 0)
    foreign.head(((1, (0,)),), parse_rows("generated"), 2.0)
    assert "another model" in core.submit(make_request(prompt, "p", foreign.build())).error
    outside = tiny.TinyPrompt((5, 10_000))
    assert "vocabulary" in core.submit(make_request(outside, "v")).error
    biased = make_request(prompt, "b", None, 4, logit_bias={10_000: 1.0})
    assert "vocabulary" in core.submit(biased).error
    assert "empty" in core.submit(make_request(tiny.TinyPrompt(()), "e")).error
    assert core.submit(make_request(prompt, "twice")) is None
    assert "id" in core.submit(make_request(prompt, "twice")).error


def test_more_programs_than_rows_wait_and_never_run_unedited(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llava", images=1, seed=0)
    requests = [
        make_request(prompt, str(i), plan(prompt, "score", 0.5 + i), 5, ignore_eos=True)
        for i in range(9)
    ]
    wanted = alone(make_core, requests)
    core = make_core("llava", max_programs=4)
    results = run(core, requests)
    assert {name: result.tokens for name, result in results.items()} == wanted
    assert torch.equal(core._runner.tables.controls.bias[0], torch.zeros(4, 4, 8))


def test_a_failed_step_keeps_no_memory(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it had computed is gone before its sequences are tried again: memory may be short."""
    core = make_core("llama")
    forward, left, alive = core._runner.model.forward, [], []

    def short_once(embeddings: torch.Tensor, *rest: Any) -> torch.Tensor:
        activations = embeddings.clone()
        if not left:
            left.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("for a moment")
        alive.append(left[0]() is not None)
        return forward(activations, *rest)

    monkeypatch.setattr(core._runner.model, "forward", short_once)
    prompts = [tiny.prompt("llama", seed=seed) for seed in range(2)]
    results = run(core, [make_request(p, str(i), None, 3) for i, p in enumerate(prompts)])
    assert {r.last.finish_reason for r in results.values()} == {FinishReason.LENGTH}
    assert not any(alive)
    assert "for a moment" in caplog.text
    assert "--max-batched-tokens" in caplog.text  # what the operator can change


@pytest.mark.parametrize("others", [0, 1])
def test_a_dead_device_ends_the_engine(
    others: int, make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can run on it any more: better no answer than one refusal after the other."""
    core = make_core("llama")

    def dead(*_: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(core._runner.model, "forward", dead)
    monkeypatch.setattr(core._runner, "recover", lambda: dead())
    for index in range(1 + others):
        core.submit(make_request(tiny.prompt("llama", seed=index), str(index)))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        core.step()
