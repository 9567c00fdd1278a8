"""Forced tokens: an answer that is given, to learn how likely each token of it is."""

from typing import Any

import pytest
import torch

from saccade_testing import tiny
from saccade_testing.engine import MakeCore, make_request, run

FORCED = (7, 7, 50, 3, 91)


def probabilities(model: Any, tokens: tuple[int, ...]) -> list[float]:
    """Log-probability of each forced token behind the ones before it, by transformers."""
    with torch.no_grad():
        logits = model(torch.tensor([[*tokens, *FORCED]])).logits[0].float()
    logs = logits.log_softmax(-1)
    start = len(tokens) - 1
    return [float(logs[start + at, token]) for at, token in enumerate(FORCED)]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_each_token_gets_the_models_own_probability(family: str, make_core: MakeCore) -> None:
    """Whatever else is asked for: neither temperature, nor bias, nor penalties have a say."""
    prompt = tiny.prompt(family, images=0, seed=3)
    core, wanted = make_core(family), probabilities(tiny.build(family), tuple(prompt.tokens))
    samplings: list[dict[str, Any]] = [
        {},
        {"temperature": 1.5, "seed": 4},
        {"temperature": 0.0, "logit_bias": {7: -100.0, 8: 100.0}, "repetition_penalty": 2.0},
    ]
    requests = [
        make_request(
            prompt, str(at), max_tokens=5, forced=FORCED, logprobs=1, ignore_eos=True, **sampling
        )
        for at, sampling in enumerate(samplings)
    ]
    for result in run(core, requests).values():
        assert result.tokens == list(FORCED)
        found = [entry.logprob for entry in result.logprobs]
        assert found == pytest.approx(wanted, abs=1e-3)


def test_behind_them_the_answer_goes_on_by_itself(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llama", images=0, seed=3)
    core = make_core("llama")
    request = make_request(prompt, "a", max_tokens=9, forced=FORCED, ignore_eos=True)
    longer = tiny.TinyPrompt((*prompt.tokens, *FORCED), ())
    after = make_request(longer, "b", max_tokens=4, ignore_eos=True)
    results = run(core, [request, after])
    assert results["a"].tokens == [*FORCED, *results["b"].tokens]


def test_a_neighbour_is_not_forced(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llama", images=0, seed=3)
    core = make_core("llama")
    alone = run(core, [make_request(prompt, "a", max_tokens=6)])["a"].tokens
    forced = make_request(prompt, "b", max_tokens=5, forced=FORCED)
    assert run(core, [make_request(prompt, "c", max_tokens=6), forced])["c"].tokens == alone


def test_a_token_that_is_not_there_is_refused(make_core: MakeCore) -> None:
    request = make_request(tiny.prompt("llama", images=0, seed=3), "a", forced=(10**6,))
    refused = make_core("llama").submit(request)
    assert refused is not None
    assert "vocabulary" in refused.error
