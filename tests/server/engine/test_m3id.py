"""M3ID in the engine, against its formula on transformers' own logits."""

import math
from typing import Any

import pytest
import torch

from saccade_interventions.methods.m3id import M3ID
from saccade_interventions.methods.pai import PAI
from saccade_interventions.rules import GrowingContrastRule
from saccade_testing import tiny
from saccade_testing.distributions import agrees, changed, choose, decode, outputs
from saccade_testing.engine import MakeCore, ask, core_with, run

TOKENS = 12


def formula(own: torch.Tensor, other: torch.Tensor, n: int, method: M3ID) -> torch.Tensor:
    """Of the paper, with the cutoff, on raw logits; own log p where it does not act."""
    s, u = own.log_softmax(-1), other.log_softmax(-1)
    g = math.exp(-method.rate * (n + method.offset))
    weight = min((1 - g) / g, method.limit or math.inf)
    if weight == 0 or (method.certain is not None and s.max().exp() >= method.certain):
        return s
    cut = s < s.max() + math.log(method.cutoff) if method.cutoff else torch.isneginf(s)
    return (s + weight * (s - u)).masked_fill(cut, -torch.inf)


def views(prompt: Any, answer: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits behind an answer, with the images and without."""
    model = tiny.build("llava")
    own = outputs(model, [*prompt.tokens, *answer], prompt).logits[0, -1]
    return own, outputs(model, [*prompt.bare, *answer]).logits[0, -1]


METHODS = {
    "default": M3ID(),
    "strong": M3ID(rate=0.3, certain=None, cutoff=0.01),
    "at once": M3ID(rate=0.1, offset=6, certain=None),
    "limited": M3ID(rate=0.5, limit=1.5, certain=None, cutoff=0.02),
    "sometimes certain": M3ID(rate=0.2, offset=3, certain=0.095, cutoff=0.1),
}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", METHODS)
def test_the_formula(name: str, sampling: Any, make_core: MakeCore) -> None:
    method, prompt = METHODS[name], tiny.prompt("llava", images=2, seed=3)
    acted: list[bool] = []

    def scores(answer: list[int]) -> torch.Tensor:
        own, other = views(prompt, answer)
        d = formula(own, other, len(answer), method)
        acted.append(not torch.equal(d, own.log_softmax(-1)))
        return d

    request = ask(prompt, [method], "r", TOKENS, logprobs=2, **sampling)
    result = run(make_core("llava"), [request])["r"]
    agrees(result, *decode(scores, TOKENS, sampling.get("temperature", 0), 5))
    counts = {counter.name: counter.value for counter in result.last.receipt.counters}
    assert counts.get("contrasted", 0) == sum(acted) > 0
    assert counts.get("plain", 0) == TOKENS - sum(acted)
    assert ("limited" in counts) == (name == "limited")
    if name == "sometimes certain":
        assert 1 < sum(acted) < TOKENS - 1


@pytest.mark.parametrize("cutoff", [0.0, 0.1])
def test_changes_of_single_logits_act_on_the_raw_logits_of_both(
    cutoff: float, make_core: MakeCore
) -> None:
    """Whether the model is certain goes by what it says without them."""
    method = M3ID(rate=0.2, offset=3, certain=0.095, cutoff=cutoff)
    asked = {"repetition_penalty": 1.7, "logit_bias": {17: 2.0, 11: -100.0}, "ignore_eos": True}
    prompt = tiny.prompt("llava", images=1, seed=3)
    answer: list[int] = []
    for n in range(TOKENS):
        with torch.inference_mode():
            own, other = views(prompt, answer)
        found = [changed(logits, prompt, answer, asked) for logits in (own, other)]
        sure = own.softmax(-1).max() >= 0.095
        d = found[0] if sure else formula(*found, n, M3ID(**{**dict(method), "certain": None}))
        answer.append(choose(d, 0, 0, n))
    result = run(make_core("llava"), [ask(prompt, [method], "r", TOKENS, **asked)])["r"]
    assert result.tokens == answer


def test_nothing_is_kept_of_a_sequence_that_ended_while_a_step_was_on_its_way() -> None:
    """That step's row is booked behind the end, or the abort, of its sequence."""
    core = core_with("llava", overlap=True)
    kept = core._runner.rules[GrowingContrastRule]._contrasted
    prompt, methods = tiny.prompt("llava", images=1, seed=3), [METHODS["strong"]]
    tokens = run(core, [ask(prompt, methods, "r", 4)])["r"].tokens
    assert not kept
    ended = ask(prompt, methods, "r", 30, stop_token_ids=(tokens[2],))
    assert len(run(core, [ended])["r"].tokens) <= 3
    run(core, [ask(prompt, [], "r", 2)])
    assert not kept
    core.submit(ask(prompt, methods, "r", 30))
    core.step()
    core.step()
    core.abort("r")
    run(core, [ask(prompt, [], "r", 2)])
    assert not kept


def test_a_step_that_failed_behind_its_logits_leaves_nothing_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next draws nothing: it has the first part of a prompt."""
    core = core_with("llava", max_batched_tokens=24)
    prompt, methods = tiny.prompt("llava", images=1, seed=3, text=30), [METHODS["strong"]]
    wanted = run(core, [ask(prompt, methods, "r", 4)])["r"].tokens
    with monkeypatch.context() as patch:
        patch.setattr(core._runner, "_draw", lambda *_: 1 / 0)
        assert run(core, [ask(prompt, methods, "r", 4)])["r"].last.error is not None
    assert run(core, [ask(prompt, methods, "r", 4)])["r"].tokens == wanted


@pytest.mark.parametrize("config", [{"cache_tokens": 512}, {"max_batched_tokens": 24}, {}])
def test_a_crowd_changes_nothing(config: Any, make_core: MakeCore) -> None:
    """Preempted, in pieces, or beside others: the weight follows the length of the answer."""
    prompts = [tiny.prompt("llava", images=1, seed=i) for i in range(4)]
    methods: list[list[Any]] = [[METHODS["strong"]], [PAI(alpha=1.0), METHODS["limited"]], []]
    requests = [
        ask(prompt, some, f"{i} {j}", 40, logprobs=1, temperature=0.7, seed=j)
        for i, prompt in enumerate(prompts)
        for j, some in enumerate(methods)
    ]
    core = make_core("llava", **config)
    together = run(core, requests)
    assert (core.stats().preemptions > 0) == ("cache_tokens" in config)
    alone = core_with("llava", prefix_caching=False)
    for request in requests:
        single, found = run(alone, [request])[request.request_id], together[request.request_id]
        assert found.last.error is None
        assert found.tokens == single.tokens
        receipt = single.last.receipt
        assert receipt is None or found.last.receipt.counters == receipt.counters
