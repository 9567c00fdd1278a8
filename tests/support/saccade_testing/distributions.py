"""Answers token by token by a formula on transformers' own logits, in float64, and their draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch


def outputs(model: Any, tokens: list[int], prompt: Any = None) -> Any:
    """One full forward pass of transformers, hidden states included, with a prompt's images."""
    ids = torch.tensor([tokens])
    shown = prompt.arguments(ids, model.dtype) if prompt is not None else {}
    return model(input_ids=ids, **shown, use_cache=False, output_hidden_states=True)


def changed(logits: torch.Tensor, prompt: Any, answer: list[int], asked: Any) -> torch.Tensor:
    """One view's raw logits with what the request changes in single ones, as vLLM's sampler."""
    found = logits.clone()
    for token, bias in asked.get("logit_bias", {}).items():
        found[token] += bias
    factor = asked.get("repetition_penalty", 1.0)
    for token in {*prompt.tokens, *answer}:
        found[token] = found[token] / factor if found[token] > 0 else found[token] * factor
    for token in set(answer):
        found[token] -= asked.get("presence_penalty", 0.0)
        found[token] -= asked.get("frequency_penalty", 0.0) * answer.count(token)
    if len(answer) < asked.get("min_tokens", 0):
        found[list(asked["stop_token_ids"])] = -torch.inf
    return found


def choose(d: torch.Tensor, temperature: float, seed: int, position: int) -> int:
    """The engine's draw, by inverse CDF in the order of the vocabulary."""
    if temperature == 0:
        return int(d.argmax())
    u = np.random.Generator(np.random.Philox(key=seed, counter=position)).random()
    mass = torch.softmax(d / temperature, -1).cumsum(0)
    return int((mass <= u * mass[-1]).sum())


def decode(
    scores: Callable[[list[int]], torch.Tensor], count: int, t: float = 0, seed: int = 0
) -> tuple[list[int], list[torch.Tensor]]:
    """Tokens drawn from ``scores(answer so far)``, and the distributions they came from."""
    answer: list[int] = []
    said: list[torch.Tensor] = []
    for position in range(count):
        with torch.inference_mode():
            d = scores(answer)
        said.append(d.log_softmax(-1))
        answer.append(choose(d, t, seed, position))
    return answer, said


def agrees(result: Any, answer: list[int], said: list[torch.Tensor]) -> None:
    """The engine gave these tokens, with the log-probabilities of these distributions."""
    assert result.last.error is None
    assert result.tokens == answer
    for entry, log_probs in zip(result.logprobs, said, strict=True):
        assert entry.logprob == pytest.approx(log_probs[entry.token].item(), abs=2e-5)
        likeliest = log_probs.topk(len(entry.top)).values
        found = torch.tensor([value for _, value in entry.top], dtype=torch.float64)
        torch.testing.assert_close(found, likeliest, rtol=0, atol=2e-5)
