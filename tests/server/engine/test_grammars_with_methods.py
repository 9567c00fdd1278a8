"""Interventions act as ever while a grammar holds, in mixed batches, in every way of working."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from msgspec import structs

from saccade_interventions.methods.dola import DoLa
from saccade_interventions.methods.m3id import M3ID
from saccade_interventions.methods.pai_contrast import PAIContrast
from saccade_interventions.methods.vcd import VCD
from saccade_interventions.registry import Registry
from saccade_kernels.distributions import divergence
from saccade_server.engine.request import FinishReason, GenerateRequest
from saccade_testing import catalogue, held, tiny
from saccade_testing.distributions import choose, outputs
from saccade_testing.engine import Result, ask, core_with, run
from saccade_testing.held import END, mask_of

WAYS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "overlapped": {"overlap": True},
    "padded": {"padded_decode": True},
    "as-on-a-gpu": {"overlap": True, "padded_decode": True},
}
EXPRESSION = r"(ab|12|[c-h]{2}|true){2,4}\.[0-9]{2}"
MOST = 20
SAMPLED = {"temperature": 1.2, "seed": 5}


@pytest.fixture(params=WAYS)
def make_core(request: pytest.FixtureRequest) -> Any:
    """An engine that knows the bytes of its tokens, in every way of working."""
    return partial(core_with, vocabulary=held.vocabulary(), **WAYS[request.param])


EDITS = {
    name: getattr(catalogue, name)
    for name in ("VAR", "PAI", "LOCORE", "ACT", "STEER", "VAF", "GAIN", "VHR", "WEIGHS", "UNSURE")
} | {"LOOKS": catalogue.LOOKS, "MARKS": catalogue.MARKS}
"""What changes the model's own distribution, and leaves drawing from it alone."""


def asking(prompt: Any, entries: Any, name: str, **sampling: Any) -> GenerateRequest:
    methods = Registry.discover().parse(entries)
    known: dict[str, Any] = {"facts": catalogue.FACTS, "artifacts": catalogue.STORE.get}
    return ask(prompt, methods, name, **known, **sampling)


@pytest.mark.parametrize("way", ["ordinary", "as-on-a-gpu"])
@pytest.mark.parametrize("name", EDITS)
def test_the_mask_comes_behind_the_edits(name: str, way: str) -> None:
    """The same answer forced, without a grammar, tells the distributions that it came from.

    Of plain neighbours and of others with the method each gets what it gets by itself.
    """
    prompt = tiny.prompt("llava", images=1, seed=1, text=14)
    entries, others = [EDITS[name]], {"temperature": 1.1, "seed": 3, "logprobs": 1}
    make_core = partial(core_with, vocabulary=held.vocabulary(), **WAYS[way])
    core = make_core("llava")
    holding = asking(prompt, entries, "held", max_tokens=MOST, **SAMPLED)
    free = [
        asking(prompt, own, kind, max_tokens=12, **others)
        for kind, own in (("edited", entries), ("plain", []))
    ]
    plainly = asking(prompt, [], "plainly", max_tokens=MOST, **SAMPLED)
    requests = [held.held(holding, EXPRESSION), *free, held.held(plainly, EXPRESSION)]
    found = run(core, requests)
    answer = found["held"].tokens
    assert answer[-1] == END
    assert answer != found["plainly"].tokens
    for request in (holding, plainly):
        own = found[request.request_id]
        said = run(core, [_forced(request, own.tokens)])[request.request_id]
        _check_draws(own, said)
    alone = run(make_core("llava"), free)
    for kind in ("edited", "plain"):
        assert found[kind].tokens == alone[kind].tokens
        assert found[kind].logprobs == alone[kind].logprobs
        assert found[kind].last.receipt == alone[kind].last.receipt


def _forced(request: GenerateRequest, answer: list[int]) -> GenerateRequest:
    asked = structs.replace(
        request.sampling, forced=tuple(answer), max_tokens=len(answer), logprobs=tiny.VOCABULARY
    )
    return structs.replace(request, sampling=asked)


def _check_draws(result: Result, said: Result) -> None:
    """Each token is the sampler's draw from what the mask left, and the receipt what it was."""
    assert said.tokens == result.tokens
    for at, entry in enumerate(said.logprobs):
        own = torch.full((tiny.VOCABULARY,), -torch.inf, dtype=torch.float64)
        for token, value in entry.top:
            own[token] = value
        left = own + mask_of(EXPRESSION, result.tokens[:at])
        assert choose(left, SAMPLED["temperature"], 5, at) == result.tokens[at]
    assert result.last.receipt == said.last.receipt


Formula = Callable[[list[int], torch.Tensor], torch.Tensor]
"""``formula(answer, mask) -> d``: what is drawn from, by whole passes of transformers."""


def _cut(s: torch.Tensor, mask: torch.Tensor, log_cutoff: float) -> torch.Tensor:
    """Which tokens the cutoff excludes: it goes by the likeliest that the mask allows."""
    return torch.isinf(mask) | (s < (s + mask).max() + log_cutoff)


def _vcd(prompt: Any, answer: list[int], mask: torch.Tensor) -> torch.Tensor:
    """PAI's contrast, whose branch is the prompt without its images."""
    model, tokens = tiny.build("llava"), [*prompt.tokens, *answer]
    s = outputs(model, tokens, prompt).logits[0, -1].log_softmax(-1)
    u = outputs(model, [*prompt.bare, *answer]).logits[0, -1].log_softmax(-1)
    cut = _cut(s, mask, float(torch.tensor(0.4).log()))
    return (2.5 * (s - u) + u).masked_fill(cut, -torch.inf)


def _m3id(prompt: Any, answer: list[int], mask: torch.Tensor) -> torch.Tensor:
    model, tokens = tiny.build("llava"), [*prompt.tokens, *answer]
    s = outputs(model, tokens, prompt).logits[0, -1].log_softmax(-1)
    u = outputs(model, [*prompt.bare, *answer]).logits[0, -1].log_softmax(-1)
    weight = float(torch.tensor(0.3 * len(answer)).exp()) - 1
    if weight == 0:
        return s + mask
    cut = _cut(s, mask, float(torch.tensor(0.3).log()))
    return (s + weight * (s - u)).masked_fill(cut, -torch.inf)


def _dola(prompt: Any, answer: list[int], mask: torch.Tensor) -> torch.Tensor:
    """The layer is chosen by all tokens, whatever is allowed."""
    model, tokens = tiny.build("llava"), [*prompt.tokens, *answer]
    out = outputs(model, tokens, prompt)
    final, norm = out.logits[0, -1].log_softmax(-1), model.get_decoder().norm
    early = [
        model.lm_head(norm(out.hidden_states[layer][0, -1])).log_softmax(-1) for layer in (0, 1, 3)
    ]
    gaps = [float(divergence(final[None], q[None], "dola")) for q in early]
    cut = _cut(final, mask, float(torch.tensor(0.3).log()))
    return (final - early[gaps.index(max(gaps))]).masked_fill(cut, -torch.inf)


CONTRASTS: dict[str, tuple[Any, Callable[..., torch.Tensor]]] = {
    "pai_contrast": (PAIContrast(gamma=2.5, cutoff=0.4), _vcd),
    "dola": (DoLa(layers=[0, 1, 3], early_norm=True, relative_top=0.3), _dola),
    "m3id": (M3ID(rate=0.3, certain=None, cutoff=0.3), _m3id),
}


@torch.inference_mode()
def by_hand(prompt: Any, formula: Callable[..., torch.Tensor], asked: Any) -> list[int]:
    answer: list[int] = []
    while len(answer) < MOST and END not in answer:
        d = formula(prompt, answer, mask_of(EXPRESSION, answer))
        answer.append(choose(d, asked.get("temperature", 0), asked.get("seed", 0), len(answer)))
    return answer


@pytest.mark.parametrize("kind", ["greedy", "sampled"])
@pytest.mark.parametrize("name", CONTRASTS)
def test_contrast_goes_by_the_likeliest_token_that_is_allowed(
    name: str, kind: str, make_core: Any
) -> None:
    """Of several rows of a step, some of them free; the same tokens with log-probabilities."""
    method, formula = CONTRASTS[name]
    asked = SAMPLED if kind == "sampled" else {}
    prompts = [tiny.prompt("llava", images=1, seed=seed, text=9 + seed) for seed in (3, 4)]
    requests = [
        held.held(ask(prompt, [method], f"held{at}", MOST, **asked), EXPRESSION)
        for at, prompt in enumerate(prompts)
    ]
    free = ask(prompts[0], [method], "free", 9, **SAMPLED)
    plain = held.held(ask(prompts[1], [], "plain", MOST, **SAMPLED), EXPRESSION)
    found = run(make_core("llava"), [requests[0], free, plain, requests[1]])
    for at, prompt in enumerate(prompts):
        result = found[f"held{at}"]
        assert result.tokens == by_hand(prompt, formula, asked)
        assert result.last.finish_reason is FinishReason.STOP
        counted = sum(counter.value for counter in result.last.receipt.counters)
        assert counted == len(result.tokens)
        assert result.tokens != found["plain"].tokens
    assert found["free"].tokens == run(make_core("llava"), [free])["free"].tokens
    said = structs.replace(requests[0].sampling, logprobs=1)
    eager = run(make_core("llava"), [structs.replace(requests[0], sampling=said)])["held0"]
    assert eager.tokens == found["held0"].tokens


@pytest.mark.parametrize("cutoff", [0.9, 1.0])
def test_a_cutoff_never_leaves_nothing(cutoff: float, make_core: Any) -> None:
    """Even where all that it would keep is not allowed."""
    prompt = tiny.prompt("llava", images=1, seed=3)
    requests = [
        held.held(ask(prompt, [method], name, MOST, **SAMPLED), EXPRESSION)
        for name, method in (
            ("vcd", VCD(alpha=1.5, beta=cutoff)),
            ("dola", DoLa(layers=[1, 3], relative_top=cutoff)),
        )
    ]
    for result in run(make_core("llava"), requests).values():
        assert result.last.finish_reason is FinishReason.STOP
