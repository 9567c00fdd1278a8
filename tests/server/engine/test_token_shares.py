"""The probability of groups of tokens, by row, is that of transformers."""

from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.traces.data import TokenShareReading, Trace
from saccade_testing import tiny
from saccade_testing.engine import core_with, make_request, run

TOKENS = 4
GROUPS = ((3, 17, 40), (), (5,), (3, 5))
SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "chunks": {"max_batched_tokens": 16},
    "as on a GPU": {"padded_decode": True, "overlap": True},
}


def traced(
    prompt: Any, name: str, groups: Any, rows: tuple[int, int] | None = None
) -> GenerateRequest:
    rows = (0, len(prompt.tokens) + TOKENS - 1) if rows is None else rows
    reading = TokenShareReading(name="shares", rows=rows, groups=groups)
    request = make_request(prompt, name, max_tokens=TOKENS, ignore_eos=True)
    return replace(request, trace=Trace((reading,)))


@torch.no_grad()
def probabilities(family: str, prompt: Any, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Of every row, by transformers."""
    ids, model = torch.tensor([[*prompt.tokens, *tokens[:-1]]]), tiny.build(family)
    logits = model(input_ids=ids, use_cache=False, **prompt.arguments(ids, model.dtype)).logits
    found: np.ndarray[Any, Any] = logits[0].softmax(-1).numpy()
    return found


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", ["llama", "llava"])
def test_shares_are_sums_of_probabilities(family: str, setting: str) -> None:
    """Two sequences in one batch ask about other tokens, one of them for few rows."""
    first, second = (tiny.prompt(family, seed=seed) for seed in range(2))
    core = core_with(family, **SETTINGS[setting])
    some = (len(second.tokens) - 1, len(second.tokens) + 1)
    results = run(core, [traced(first, "a", GROUPS), traced(second, "b", GROUPS[:1], some)])
    wanted = probabilities(family, first, results["a"].tokens)
    sums = np.stack([wanted[:, list(group)].sum(-1) for group in GROUPS], 1)
    np.testing.assert_allclose(results["a"].trace["shares"], sums, atol=1e-12)
    assert (sums[:, 1] == 0).all()
    wanted = probabilities(family, second, results["b"].tokens)[slice(*some), list(GROUPS[0])]
    found = results["b"].trace["shares"]
    np.testing.assert_allclose(found, wanted.sum(-1, keepdims=True), atol=1e-12)


def test_tokens_that_the_model_does_not_have_are_refused() -> None:
    core, prompt = core_with("llama"), tiny.prompt("llama")
    size = core.info.vocab_size
    output = core.submit(traced(prompt, "a", ((size,),)))
    assert output is not None
    assert f"tokens go from 0 to {size - 1}" in (output.error or "")
