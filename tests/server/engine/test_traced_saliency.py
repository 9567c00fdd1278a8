"""Saliency of traces equals |A dL/dA| by autograd through transformers' whole sequence, float64."""

from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.traces import saliency as module
from saccade_server.engine.traces.data import SaliencyReading
from saccade_testing import readings, steered, tiny
from saccade_testing.engine import REGISTRY, ask, core_with, make_request, plan_for, run
from saccade_testing.oracle import visual
from saccade_testing.readings import (
    SETTINGS,
    TOKENS,
    answer_rows,
    core_for,
    prompts_of,
    saliency,
    with_trace,
)
from saccade_testing.tiny import TinyPrompt

HEADS, LAYERS = (0, 1, 2, 3), (0, 1, 3)


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


def everything(prompt: TinyPrompt) -> tuple[SaliencyReading, ...]:
    """All keys by layer and head; some heads' mean over the answer and the first keys, upside down;
    and one number a key of the last two rows."""
    rows = answer_rows(prompt)
    every = ((0, rows[1]),)
    some = ((rows[0], rows[1] + 3), (0, 5))
    last = (rows[1] - 2, rows[1])
    return (
        SaliencyReading(name="all", rows=rows, layers=LAYERS, heads=HEADS, keys=every),
        SaliencyReading(
            name="heads", rows=rows, layers=(2,), heads=(1, 3), keys=some, over=frozenset({"head"})
        ),
        SaliencyReading(
            name="last",
            rows=last,
            layers=LAYERS,
            heads=HEADS,
            keys=((0, 7),),
            over=frozenset({"head", "layer"}),
        ),
    )


def request_for(prompt: TinyPrompt, name: str, **more: Any) -> GenerateRequest:
    request = make_request(prompt, name, max_tokens=TOKENS, ignore_eos=True, **more)
    return with_trace(request, *everything(prompt))


def check(trace: dict[str, Any], wanted: torch.Tensor, atol: float = 1e-11) -> None:
    """``wanted``: [rows, layers, heads, keys] of all layers, heads and keys."""
    rows, *_, keys = wanted.shape
    found = trace["all"]
    assert found.shape == (rows, 3, 4, keys)
    np.testing.assert_allclose(found, wanted[:, LAYERS], rtol=1e-6, atol=atol)
    assert wanted.amax((1, 2, 3)).min() > 1e-5
    first = keys - rows
    padded = torch.nn.functional.pad(wanted, (0, 3))
    heads = padded[:, 2, (1, 3)].mean(1)
    some = torch.cat([heads[:, first:], heads[:, :5]], 1)
    np.testing.assert_allclose(trace["heads"], some[:, None], rtol=1e-6, atol=atol)
    last = wanted[-2:, LAYERS].mean((1, 2))[:, :7]
    np.testing.assert_allclose(trace["last"], last, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("setting", ["chunks", "as on a GPU"])
def test_saliency_of_every_family(family: str, setting: str) -> None:
    """Of tokens that are drawn at a temperature, and of the likeliest."""
    prompts = prompts_of(family)
    core = core_for(setting, prompts, family)
    unsaid = {tiny.IMAGE_TOKEN: -100.0, tiny.VIDEO_TOKEN: -100.0}  # transformers looks for images
    drawn = {"temperature": 1.5, "seed": 3, "top_p": 0.95, "logit_bias": unsaid}
    options: list[dict[str, Any]] = [{}, drawn]
    requests = [
        request_for(prompt, str(n), **some)
        for n, (prompt, some) in enumerate(zip(prompts, options, strict=True))
    ]
    results = run(core, requests)
    for n, prompt in enumerate(prompts):
        result = results[str(n)]
        check(result.trace, saliency(tiny.build(family), prompt, result.tokens))


def pai(prompt: TinyPrompt) -> readings.Weights:
    def weights(layer: int, scores: torch.Tensor) -> torch.Tensor:
        if layer < 2:
            return scores.softmax(-1)
        rows = torch.arange(scores.shape[1]) >= len(prompt.tokens) - 1
        where = rows[:, None] & visual(prompt, scores.shape[2])[None] & scores.isfinite()
        hidden = scores.masked_fill(~scores.isfinite(), 0.0)
        return torch.where(where, hidden + 0.7 * hidden.abs(), scores).softmax(-1)

    return weights


def pasta(prompt: TinyPrompt) -> readings.Weights:
    """What is outside of a span loses most of its mass, in a head of layer 1."""

    def weights(layer: int, scores: torch.Tensor) -> torch.Tensor:
        found = scores.softmax(-1)
        if layer != 1:
            return found
        keys, heads = torch.arange(scores.shape[2]), torch.arange(scores.shape[0])
        outside = (keys < len(prompt.tokens)) & ~((keys >= 5) & (keys < 12))
        factor = torch.where((heads == 3)[:, None] & outside, 0.05, 1.0)[:, None]
        scaled = found * factor
        return scaled / scaled.sum(-1, keepdim=True)

    return weights


def mapped(prompt: TinyPrompt) -> Any:
    """A model in which a map of low rank changes what attention adds in two layers."""

    def added(site: str, index: int, h: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if site != "attention_output" or index not in steered.MAPPED:
            return h
        places = [0, 2] if index == 3 else [1]
        read, write = steered.READ[places], steered.WRITE[places]
        return h + rows * ((h @ read.T + steered.SIGMA[places]) @ write)

    oracle = steered.Oracle(tiny.build("llava"), "last+generated", added=added)
    oracle.length = len(prompt.tokens)
    return oracle.model


@pytest.mark.parametrize("setting", SETTINGS)
def test_edits_in_force_are_gone_back_through(setting: str) -> None:
    """Of scores, of masses, at a site; and none."""
    prompts = prompts_of("llava", 4)
    core = core_for(setting, prompts, "llava")
    entries: list[list[Any]] = [
        [{"method": "pai", "alpha": 0.7}],
        [{"method": "pasta", "spans": [[5, 12]], "heads": {"1": [3]}, "alpha": 0.05}],
        [{**steered.MAP, "site": "attention_output"}],
        [],
    ]
    plans = [
        steered.plan_for(core, prompt, some) if some else None
        for prompt, some in zip(prompts, entries, strict=True)
    ]
    pairs = zip(prompts, plans, strict=True)
    requests = [request_for(prompt, str(n), plan=plan) for n, (prompt, plan) in enumerate(pairs)]
    results = run(core, requests)
    assert (core.stats().preemptions > 0) == (setting == "preempted")
    weights = [pai(prompts[0]), pasta(prompts[1]), readings.plain, readings.plain]
    for n, (prompt, own) in enumerate(zip(prompts, weights, strict=True)):
        result = results[str(n)]
        model = mapped(prompt) if n == 2 else tiny.build("llava")
        wanted = saliency(model, prompt, result.tokens, own)
        check(result.trace, wanted, atol=2e-6)  # tables hold float32


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_is_of_the_token_that_a_rule_takes(setting: str) -> None:
    """SGRS rejects the likeliest now and then, and judges rows of its own in the same steps."""
    prompt = tiny.prompt("llama", seed=1, text=20)
    entry = {"method": "sgrs", "alpha": 1.2, "warmup": 1, "candidates": 4}
    entry |= {"layers": [2, 3], "fallback": "most_salient"}
    request = ask(prompt, REGISTRY.parse([entry]), "r", TOKENS + 3)
    rows = answer_rows(prompt, TOKENS + 3)
    reading = SaliencyReading(
        name="all", rows=rows, layers=LAYERS, heads=HEADS, keys=((0, rows[1]),)
    )
    other = tiny.prompt("llama", seed=2, text=31)
    core = core_with("llama", **{**SETTINGS[setting]})
    results = run(core, [with_trace(request, reading), request_for(other, "other")])
    result = results["r"]
    plain = run(core_with("llama"), [replace(request, request_id="r")])["r"]
    assert result.tokens == plain.tokens
    assert result.last is not None
    assert result.last.receipt is not None
    counts = {counter.name: counter.value for counter in result.last.receipt.counters}
    assert counts["rejections"] > 0
    logits = readings.Modules(tiny.build("llama")).run(prompt, result.tokens)
    assert result.tokens != logits[rows[0] :].argmax(-1).tolist()
    wanted = saliency(tiny.build("llama"), prompt, result.tokens)
    np.testing.assert_allclose(result.trace["all"], wanted[:, LAYERS], rtol=1e-6, atol=1e-11)
    check(results["other"].trace, saliency(tiny.build("llama"), other, results["other"].tokens))


def test_many_rows_go_back_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REPLICAS", 2)
    prompts = prompts_of("llama", 5)
    results = run(core_with("llama"), [request_for(p, str(n)) for n, p in enumerate(prompts)])
    for n, prompt in enumerate(prompts):
        result = results[str(n)]
        check(result.trace, saliency(tiny.build("llama"), prompt, result.tokens))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_neighbour_notices_nothing(setting: str) -> None:
    def crowd(read: bool) -> dict[str, Any]:
        other, *prompts = prompts_of("llava", 3)
        core = core_for(setting, [other, *prompts], "llava")
        plan = plan_for(core, prompts[1], [{"method": "pai", "alpha": 0.7}])
        plans = [None, plan]
        requests = [
            make_request(prompt, str(n), plan, 8, ignore_eos=True, logprobs=2)
            for n, (prompt, plan) in enumerate(zip(prompts, plans, strict=True))
        ]
        traced = request_for(other, "other")
        requests.append(traced if read else replace(traced, trace=None))
        return {n: (r.tokens, r.logprobs) for n, r in run(core, requests).items()}

    assert crowd(True) == crowd(False)


GOOD: dict[str, Any] = {
    "name": "a",
    "rows": (20, 22),
    "layers": (1,),
    "heads": (0,),
    "keys": ((0, 4),),
}
BAD: dict[str, dict[str, Any]] = {
    "rows that tokens are drawn from": {"rows": (3, 20)},
    "a: its layers and heads": {"heads": (4,)},
    "heads (0 to 3) are some": {"heads": ()},
    "its layers and heads": {"layers": ()},
    "its keys are no": {"keys": ((4, 4),)},
    "keys are no spans": {"keys": ()},
    "its rows stay apart": {"over": frozenset({"row"})},
    "its layers are not distinct": {"layers": (4,)},
}


@pytest.mark.parametrize("words", BAD)
def test_what_is_not_there_is_refused(words: str) -> None:
    core, prompt = core_with("llama"), tiny.prompt("llama")
    assert len(prompt.tokens) - 1 <= GOOD["rows"][0]
    reading = SaliencyReading(**{**GOOD, **BAD[words]})
    output = core.submit(with_trace(make_request(prompt), reading))
    assert output is not None
    assert words in (output.error or "")


def test_given_tokens_are_not_drawn() -> None:
    core, prompt = core_with("llama"), tiny.prompt("llama")
    request = replace(make_request(prompt), given=(11, 12))
    output = core.submit(with_trace(request, SaliencyReading(**GOOD)))
    assert output is not None
    assert "rows that tokens are drawn from" in (output.error or "")
