"""Answers that grammars hold: what is drawn, how they end, what neighbours and failures notice."""

from functools import partial
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from saccade_server.engine.request import Failure, FinishReason
from saccade_server.grammars.grammar import Grammar, GrammarCount, GrammarKind, Hold, Thinking
from saccade_testing import held, tiny
from saccade_testing.distributions import changed, choose, outputs
from saccade_testing.engine import core_with, make_request, run
from saccade_testing.held import END, FIRST, TEXTS, mask_of, text_of

WAYS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "overlapped": {"overlap": True},
    "padded": {"padded_decode": True},
    "as-on-a-gpu": {"overlap": True, "padded_decode": True},
}
EXPRESSION = r"(ab|12|[c-h]{2}|true){2,5}\.[0-9]{2}"
MOST = 24
ALONE: dict[str, Any] = {
    "greedy": {},
    "sampled": {"temperature": 1.1, "seed": 5},
    "filtered": {"temperature": 1.3, "top_p": 0.8, "top_k": 9, "min_p": 0.02, "seed": 6},
    "with log-probabilities": {"temperature": 0.9, "seed": 8, "logprobs": 3},
    "changed": {
        "repetition_penalty": 1.4,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "logit_bias": {FIRST + 1: 4.0, FIRST + 12: 3.0},
        "temperature": 0.8,
        "seed": 7,
    },
}


@pytest.fixture(params=WAYS)
def make_core(request: pytest.FixtureRequest) -> Any:
    """An engine that knows the bytes of its tokens, in every way of working."""
    return partial(core_with, vocabulary=held.vocabulary(), **WAYS[request.param])


@torch.inference_mode()
def by_hand(prompt: Any, expression: str, asked: Any, model: Any = None) -> list[int]:
    """The answer by full passes of transformers in float64: the mask, then the sampler."""
    model, answer = model or tiny.build("llama"), []
    while not answer or (answer[-1] != END and len(answer) < MOST):
        logits = outputs(model, [*prompt.tokens, *answer]).logits[0, -1]
        logits = changed(logits, prompt, answer, asked) + mask_of(expression, answer)
        answer.append(_draw(logits, asked, len(answer)))
    return answer


def _draw(logits: torch.Tensor, asked: Any, position: int) -> int:
    if "top_k" not in asked:
        return choose(logits, asked.get("temperature", 0), asked.get("seed", 0), position)
    order = (logits / asked["temperature"]).sort(descending=True, stable=True)
    p = order.values.softmax(-1)
    keep = (p >= asked["min_p"] * p[0]) & (torch.arange(len(p)) < asked["top_k"])
    p = (order.values.masked_fill(~keep, -torch.inf)).softmax(-1)
    keep &= p.cumsum(-1) - p < asked["top_p"]
    at = choose((p * keep).log(), 1.0, asked["seed"], position)
    return int(order.indices[at])


@pytest.mark.parametrize("kind", ALONE)
def test_tokens_are_drawn_of_those_that_the_grammar_allows(kind: str, make_core: Any) -> None:
    """Beside others that nothing holds, who get every bit that they get by themselves."""
    prompts = [tiny.prompt("llama", seed=seed, text=9 + seed) for seed in range(3)]
    asked = ALONE[kind]
    free = [
        make_request(prompt, f"free{at}", None, 9, logprobs=1, ignore_eos=True, **ALONE["sampled"])
        for at, prompt in enumerate(prompts)
    ]
    holding = [
        held.held(make_request(prompt, f"held{at}", None, MOST, **asked), EXPRESSION)
        for at, prompt in enumerate(prompts)
    ]
    found = run(make_core("llama"), [*free[:2], *holding, *free[2:]])
    alone = run(make_core("llama"), free)
    for at, prompt in enumerate(prompts):
        result = found[f"held{at}"]
        assert result.tokens == by_hand(prompt, EXPRESSION, asked)
        assert result.last.finish_reason is FinishReason.STOP
        assert len(result.tokens) > 3
        assert result.last.grammar.complete
        assert found[f"free{at}"].tokens == alone[f"free{at}"].tokens
        assert found[f"free{at}"].logprobs == alone[f"free{at}"].logprobs
        assert found[f"free{at}"].last.grammar is None


def test_log_probabilities_are_those_before_the_mask(make_core: Any) -> None:
    prompt, model = tiny.prompt("llama", seed=1), tiny.build("llama")
    request = held.held(make_request(prompt, "r", None, MOST, logprobs=2), EXPRESSION)
    result = run(make_core("llama"), [request, make_request(prompt, "x", None, 5)])["r"]
    with torch.inference_mode():
        for at, entry in enumerate(result.logprobs):
            tokens = [*prompt.tokens, *result.tokens[:at]]
            wanted = outputs(model, tokens).logits[0, -1].log_softmax(-1)
            assert entry.logprob == pytest.approx(wanted[result.tokens[at]].item(), abs=2e-5)
            assert [t for t, _ in entry.top] == wanted.topk(2).indices.tolist()


def test_counts_say_what_the_grammar_did(make_core: Any) -> None:
    """Tokens but for the end; those of which there was one choice; whether it was whole."""
    prompt = tiny.prompt("llama")
    grammar = held.regex(r"12[ab]\.")
    found = run(
        make_core("llama"),
        [
            held.held(make_request(prompt, "whole", None, 9), grammar),
            held.held(make_request(prompt, "cut", None, 2), grammar),
        ],
    )
    whole, cut = found["whole"], found["cut"]
    assert text_of(whole.tokens) in {"12a.", "12b."}
    count = whole.last.grammar
    assert (count.constrained, count.complete) == (len(whole.tokens) - 1, True)
    assert count.forced == sum(
        len(held.may_follow(r"12[ab]\.", text_of(whole.tokens[:at]))) == 1
        for at in range(len(whole.tokens) - 1)
    )
    assert cut.last.finish_reason is FinishReason.LENGTH
    assert (cut.last.grammar.constrained, cut.last.grammar.complete) == (2, False)


def test_reasoning_comes_before(make_core: Any) -> None:
    """Nothing holds it but that it does not end the answer; its marker is not the grammar's."""
    closes = FIRST + len(TEXTS) + 3
    prompt = tiny.prompt("llama", seed=2)
    request = make_request(prompt, "r", None, 14, logit_bias={END: 50.0, closes: 20.0})
    grammar = held.regex(r"[ab]{3}", Thinking(opens=None, closes=closes))
    result = run(make_core("llama"), [held.held(request, grammar)])["r"]
    assert result.tokens[0] == closes
    assert result.last.finish_reason is FinishReason.STOP
    assert text_of(result.tokens[1:]) in {a + b + c for a in "ab" for b in "ab" for c in "ab"}


def test_an_end_token_ends_it_whatever_is_ignored(make_core: Any) -> None:
    prompt = tiny.prompt("llama")
    request = held.held(make_request(prompt, "r", None, 9, ignore_eos=True), "a|b")
    result = run(make_core("llama"), [request])["r"]
    assert result.tokens[1:] == [END]
    assert result.last.finish_reason is FinishReason.STOP


def test_stop_tokens_stop_it_where_the_grammar_allows_them(make_core: Any) -> None:
    prompt, dot = tiny.prompt("llama"), FIRST + TEXTS.index(".")
    request = make_request(prompt, "r", None, 9, stop_token_ids=(dot,), ignore_eos=True)
    result = run(make_core("llama"), [held.held(request, r"a{2}\.b{3}")])["r"]
    assert text_of(result.tokens) == "aa."
    assert result.last.finish_reason is FinishReason.STOP
    assert result.last.grammar == GrammarCount(2, 2, False)
    assert result.last.holds == bytes([Hold.FORCED] * 2)


def test_what_a_stop_token_ends_is_complete_without_it(make_core: Any) -> None:
    """The token is not in the answer's text, so it can make nothing whole."""
    prompt, dot = tiny.prompt("llama"), FIRST + TEXTS.index(".")
    core = make_core("llama")
    for expression, complete in ((r"a{2}\.", False), (r"a{2}\.?", True)):
        request = make_request(
            prompt, "r", None, 9, stop_token_ids=(dot,), logit_bias={dot: 90.0, END: -90.0}
        )
        result = run(core, [held.held(request, expression)])["r"]
        assert text_of(result.tokens) == "aa."
        assert result.last.grammar == GrammarCount(2, 2, complete)


def test_held_back_ends_are_no_reason_to_stop_while_other_tokens_are_left(make_core: Any) -> None:
    prompt = tiny.prompt("llama")
    request = make_request(prompt, "r", None, 9, min_tokens=3, stop_token_ids=(5, 6))
    result = run(make_core("llama"), [held.held(request, r"c\.c\.|c\.")])["r"]
    assert text_of(result.tokens) == "c.c."
    assert result.last.finish_reason is FinishReason.STOP


def test_a_grammar_that_min_tokens_leaves_nothing_of_ends_in_an_error(make_core: Any) -> None:
    """Never in a loop; its neighbours go on, and so does one whose grammar goes on long enough."""
    prompt = tiny.prompt("llama")
    requests = [
        held.held(make_request(prompt, "stuck", None, 9, min_tokens=5), "[ab]{3}"),
        held.held(make_request(prompt, "long", None, 9, min_tokens=5), "[ab]{3,7}"),
        make_request(prompt, "free", None, 9, ignore_eos=True),
    ]
    found = run(make_core("llama"), requests)
    last = found["stuck"].last
    assert (last.finish_reason, last.failure) == (FinishReason.ERROR, Failure.GRAMMAR_STUCK)
    assert "after 3 tokens, and min_tokens is 5" in last.error
    assert len(found["stuck"].tokens) == 3
    assert last.grammar == GrammarCount(3, 0, True)
    assert found["long"].last.finish_reason is FinishReason.STOP
    assert len(found["long"].tokens) >= 5
    assert len(found["free"].tokens) == 9


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_an_error_whatever_a_mask_takes_away(
    make_core: Any, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, core = tiny.prompt("llama"), make_core("llama")
    requests = [held.held(make_request(prompt, n, None, 9), r"[ab]{6}") for n in ("good", "bad")]
    wanted = run(core, requests)["good"].tokens
    logits, count = core._runner.model.logits, iter(range(1000))

    def poisoned(hidden: torch.Tensor, invariant: bool) -> torch.Tensor:
        found = logits(hidden)
        if next(count) == 3:
            found = found.clone()
            found[1, END + 1] = value  # of a token that the grammar never has
        return found

    monkeypatch.setattr(core._runner.model, "logits", poisoned)
    found = run(core, requests)
    assert found["good"].tokens == wanted
    last = found["bad"].last
    assert (last.finish_reason, last.failure) == (FinishReason.ERROR, None)
    assert len(found["bad"].tokens) == 3


def test_what_does_not_compile_fails_alone(make_core: Any) -> None:
    prompt = tiny.prompt("llama")
    broken = Grammar(GrammarKind.GRAMMAR, "start: nothing\n")
    requests = [
        held.held(make_request(prompt, "broken", None, 9), broken),
        held.held(make_request(prompt, "held", None, 9), "ab"),
        make_request(prompt, "free", None, 9, ignore_eos=True),
    ]
    found = run(make_core("llama"), requests)
    last = found["broken"].last
    assert (last.finish_reason, last.failure) == (FinishReason.ERROR, Failure.GRAMMAR_REFUSED)
    assert last.error
    assert not found["broken"].tokens
    assert text_of(found["held"].tokens) == "ab"
    assert len(found["free"].tokens) == 9


def test_an_engine_without_a_vocabulary_refuses_grammars() -> None:
    request = held.held(make_request(tiny.prompt("llama"), "r", None, 9), "ab")
    core = core_with("llama")
    refused = core.submit(request)
    assert refused.finish_reason is FinishReason.ERROR
    assert "bytes of its tokens" in refused.error
    assert not core.info.follows_grammars
    assert core_with("llama", held.vocabulary()).info.follows_grammars


@pytest.mark.parametrize("known", ["given", "forced"])
def test_known_tokens_and_a_grammar_exclude_each_other(known: str) -> None:
    request = held.held(make_request(tiny.prompt("llama"), "r", None, 9), "ab")
    if known == "given":
        request = replace(request, given=(11,))
    else:
        request = replace(request, sampling=replace(request.sampling, forced=(11,)))
    refused = core_with("llama", held.vocabulary()).submit(request)
    assert "not given or forced" in refused.error
