"""Log-probabilities of a prompt's tokens, and of given ones: transformers' in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from saccade_interventions.registry import Registry
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.traces.data import ScoreReading, Trace
from saccade_server.models import lens
from saccade_server.requests.scores import scoring
from saccade_testing import catalogue, tiny
from saccade_testing.engine import MakeCore, Result, ask, core_with, make_request, run

CONTINUATION = (33, 44, 55, 44, 12)
NEAR: dict[str, float] = {"rtol": 0, "atol": 1e-9}
METHODS = Registry.discover()


def distributions(family: str, prompt: tiny.TinyPrompt, more: tuple[int, ...] = ()) -> torch.Tensor:
    """Log-probabilities behind every row of a prompt and more tokens, by transformers."""
    ids = torch.tensor([[*prompt.tokens, *more]])
    model = tiny.build(family)
    with torch.no_grad():
        logits = model(input_ids=ids, **prompt.arguments(ids)).logits
    found: torch.Tensor = logits[0].log_softmax(-1)
    return found


def whole(prompt: tiny.TinyPrompt, name: str = "r", top: int = 3, **more: Any) -> GenerateRequest:
    """A request for the scores of a whole prompt, and for nothing else."""
    request = make_request(prompt, name, max_tokens=0, **more)
    return scoring(request, 0, tuple(prompt.tokens[1:]), top)


def check(result: Result, wanted: torch.Tensor, tokens: tuple[int, ...]) -> None:
    """Hold scores against the distributions that they are of, [tokens, vocabulary]."""
    own = wanted.gather(-1, torch.tensor(tokens)[:, None])
    found = {name.removeprefix("scores."): array for name, array in result.trace.items()}
    np.testing.assert_allclose(found["logprobs"], own.squeeze(-1), **NEAR)
    np.testing.assert_array_equal(found["ranks"], (wanted > own).sum(-1) + 1)
    best = wanted.topk(found["top_tokens"].shape[1])
    np.testing.assert_array_equal(found["top_tokens"], best.indices)
    np.testing.assert_allclose(found["top_logprobs"], best.values, **NEAR)


@pytest.mark.parametrize("way", ["whole", "as-on-a-gpu", "in-chunks"])
def test_a_prompt_s_are_those_of_transformers(family: str, way: str) -> None:
    ways: dict[str, dict[str, Any]] = {
        "whole": {},
        "as-on-a-gpu": {"overlap": True, "padded_decode": True},
        "in-chunks": {"max_batched_tokens": 16},
    }
    prompt = tiny.prompt(family, images=3, seed=4)
    found = run(core_with(family, **ways[way]), [whole(prompt)])["r"]
    check(found, distributions(family, prompt)[:-1], tuple(prompt.tokens[1:]))


def test_a_continuation_s_are_those_of_transformers(family: str, make_core: MakeCore) -> None:
    """The second time behind pages of the first, beside a prompt that is scored whole."""
    prompt = tiny.prompt(family, images=2, seed=6, text=60)
    core, start = make_core(family), len(prompt.tokens) - 1
    known = replace(make_request(prompt, "r", max_tokens=4), given=CONTINUATION[:-1])
    request = scoring(known, start, CONTINUATION, 2)
    wanted = distributions(family, prompt, CONTINUATION)
    for cached in (0, 64 * (start // 64)):
        found = run(core, [request, whole(prompt, "w", top=1)])
        assert found["r"].last.cached_tokens == cached
        assert found["w"].last.cached_tokens == 0
        check(found["r"], wanted[start:-1], CONTINUATION)
        check(found["w"], wanted[:start], tuple(prompt.tokens[1:]))


def test_one_token_behind_a_cached_prompt_is_a_step_of_one_row(make_core: MakeCore) -> None:
    """As decodes are, beside which it runs."""
    prompt = tiny.prompt("llama", images=0, seed=6, text=60)
    prompt = replace_tokens(prompt, prompt.tokens[:65])
    core = make_core("llama")
    run(core, [make_request(prompt, "first", max_tokens=1)])
    neighbour = make_request(tiny.prompt("llama", images=0, seed=2), "n", max_tokens=6)
    alone = run(core, [neighbour])["n"].tokens
    request = scoring(make_request(prompt, "r", max_tokens=0), 64, (50,), 2)
    found = run(core, [neighbour, request])
    assert found["r"].last.cached_tokens == 64
    assert found["n"].tokens == alone
    check(found["r"], distributions("llama", prompt)[64:], (50,))


def test_an_answer_goes_on_as_if_nobody_looked(make_core: MakeCore) -> None:
    prompt = tiny.prompt("qwen3", images=0, seed=3)
    core = make_core("qwen3")
    plain = make_request(prompt, "p", max_tokens=8, logprobs=2)
    seen = scoring(replace(plain, request_id="s"), 0, tuple(prompt.tokens[1:]), 2)
    found = run(core, [plain, seen])
    assert found["s"].tokens == found["p"].tokens
    assert found["s"].logprobs == found["p"].logprobs
    check(found["s"], distributions("qwen3", prompt)[:-1], tuple(prompt.tokens[1:]))


@pytest.mark.parametrize("way", ["in-chunks", "preempted", "as-on-a-gpu"])
def test_under_interventions_chunks_and_preemption_change_nothing(way: str) -> None:
    ways: dict[str, dict[str, Any]] = {
        "in-chunks": {"max_batched_tokens": 16, "max_num_seqs": 8},
        "preempted": {"cache_tokens": 320, "max_num_seqs": 6},
        "as-on-a-gpu": {"overlap": True, "padded_decode": True},
    }
    prompt = tiny.prompt("llava", images=1, seed=5, text=38)
    entries = {"plain": (), **{name: (catalogue.SEEING[name],) for name in ACTING}}
    requests = []
    for name, some in entries.items():
        request = ask(prompt, METHODS.parse(list(some)), name, 12, facts=catalogue.FACTS)
        requests.append(scoring(request, 0, tuple(prompt.tokens[1:]), 1))
    core = core_with("llava", **ways[way])
    found = run(core, requests)
    assert bool(core.stats().preemptions) == (way == "preempted")
    alone = core_with("llava", prefix_caching=False)
    plain = distributions("llava", prompt)
    check(found["plain"], plain[:-1], tuple(prompt.tokens[1:]))
    rows = plain.gather(-1, torch.tensor([*prompt.tokens[1:], 0])[:, None]).squeeze(-1)[:-1]
    for request in requests:
        name = request.request_id
        wanted = run(alone, [request])[name].trace
        for array, values in found[name].trace.items():
            np.testing.assert_allclose(values, wanted[array], rtol=0, atol=1e-7, err_msg=name)
        acts = np.abs(found[name].trace["scores.logprobs"] - rows.numpy()).max() > 1e-3
        assert acts == (name != "plain"), name


ACTING = ("pai prompt", "vaf", "var")
"""Methods that edit rows of the prompt."""


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 300])
def test_rows_are_taken_block_by_block(rows: int, make_core: MakeCore) -> None:
    """A row gets what it gets alone, wherever blocks end."""
    core = make_core("llama")
    model = core._runner.model
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, model.hidden_size, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, model.vocab_size, (rows,), generator=generator)
    found = lens.scores(model, hidden, tokens, 2)
    wanted = model.early_logits(hidden, norm=True).log_softmax(-1)
    own = wanted.gather(-1, tokens[:, None])
    torch.testing.assert_close(found[0], own.squeeze(-1), **NEAR)
    assert torch.equal(found[1].long(), (wanted > own).sum(-1) + 1)
    assert torch.equal(found[2].long(), wanted.topk(2).indices)
    torch.testing.assert_close(found[3], wanted.topk(2).values, **NEAR)


@pytest.mark.parametrize(
    ("reading", "reason"),
    [
        ({"rows": (0, 3), "tokens": (1, 2)}, "it has 2 tokens for 3 rows"),
        ({"rows": (0, 1), "tokens": (97,)}, "a token is not in the vocabulary"),
        ({"rows": (0, 1), "tokens": (1,), "top": 98}, "there are no 98 likeliest tokens"),
        ({"rows": (2, 2), "tokens": ()}, "rows 2 to 2 are none"),
    ],
)
def test_what_cannot_be_read_is_refused(
    reading: dict[str, Any], reason: str, make_core: MakeCore
) -> None:
    core: EngineCore = make_core("llama")
    trace = Trace((ScoreReading(name="scores", **reading),))
    request = make_request(tiny.prompt("llama", images=0, seed=3), "r", max_tokens=1)
    refused = core.submit(replace(request, trace=trace))
    assert refused is not None
    assert reason in str(refused.error)


def replace_tokens(prompt: tiny.TinyPrompt, tokens: tuple[int, ...]) -> tiny.TinyPrompt:
    """The same prompt of other tokens, without images."""
    return tiny.TinyPrompt(tuple(tokens), (), prompt.form)
