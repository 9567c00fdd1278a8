"""min_tokens: until there are so many tokens, none that would end the answer can be drawn."""

from typing import Any

import pytest
import torch

from saccade_interventions.methods.dola import DoLa
from saccade_interventions.methods.sgrs import SGRS
from saccade_interventions.methods.vcd import VCD
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, ask, core_with, make_request, run

MOST = 12
LEAST = 7
HALF = tuple(range(0, 97, 2))
"""Every other token of the tiny models: without min_tokens an answer hardly begins."""


@pytest.mark.parametrize("family", ["llama", "qwen3_vl"])
def test_greedy_answers_are_those_of_transformers(family: str, make_core: MakeCore) -> None:
    prompt = tiny.prompt(family, images=0, seed=3)
    ids = torch.tensor([prompt.tokens])
    model, core = tiny.build(family), make_core(family)
    plain = run(core, [make_request(prompt, max_tokens=MOST, ignore_eos=True)])["r"].tokens
    stops = tuple(sorted({plain[0], plain[3], plain[LEAST]}))
    ends = sorted({*stops, *core.info.eos_token_ids})
    for least in (0, 1, LEAST, MOST):
        wanted = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=MOST,
            min_new_tokens=least,
            eos_token_id=ends,
        )[0, len(prompt.tokens) :].tolist()
        request = make_request(
            prompt, max_tokens=MOST, min_tokens=least, stop_token_ids=stops, logprobs=1
        )
        result = run(core, [request])["r"]
        assert result.tokens == wanted
        assert len(wanted) > least or least == MOST
        assert not set(wanted[:least]) & set(ends)


METHODS: dict[str, list[Any]] = {
    "plain": [],
    "vcd": [VCD(alpha=1.0, beta=1.0)],
    "vcd without a cutoff": [VCD(alpha=1.0, beta=0.0)],  # p and q of an end are both 0
    "dola": [DoLa(layers=[1, 3], relative_top=1.0)],
    "sgrs": [SGRS(layers=[1, 2])],
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", METHODS)
def test_no_end_is_drawn_before_and_soon_one_after(
    kind: str, temperature: float, make_core: MakeCore
) -> None:
    """Even where a rule would leave the ends alone, or one token only, which may be an end."""
    prompt = tiny.prompt("llava", seed=3)
    core = make_core("llava")

    def requests(least: int) -> list[Any]:
        options = {"stop_token_ids": HALF, "temperature": temperature, "min_tokens": least}
        return [
            ask(prompt, METHODS[kind], f"{n}", 40, ignore_eos=False, seed=n, **options)
            for n in range(4)
        ]

    results = run(core, requests(LEAST))
    for result in results.values():
        assert result.last.error is None
        assert len(result.tokens) > LEAST
        assert not set(result.tokens[:LEAST]) & {*HALF, *core.info.eos_token_ids}
    assert any(len(result.tokens) < 40 for result in results.values())
    assert all(len(result.tokens) < LEAST for result in run(core, requests(0)).values())


def test_preemption_changes_nothing() -> None:
    requests = [
        ask(
            tiny.prompt("llama", text=20, seed=n),
            [],
            f"{n}",
            56,
            temperature=1.0,
            seed=n,
            min_tokens=50,
            stop_token_ids=HALF,
        )
        for n in range(4)
    ]
    for mode in ({}, {"overlap": True, "padded_decode": True}):
        tight = core_with("llama", cache_tokens=144, **mode)
        found = run(tight, requests)
        assert tight.stats().preemptions > 0
        alone = {r.request_id: run(core_with("llama"), [r])[r.request_id] for r in requests}
        for name, result in found.items():
            assert result.last.error is None
            assert result.tokens == alone[name].tokens
            assert not set(result.tokens[:50]) & set(HALF)


def test_ignored_ends_are_held_back_too() -> None:
    """As in vLLM: ignore_eos says that an end does not end, not that it may come early."""
    core = core_with("llama")
    (eos, *_) = core.info.eos_token_ids
    likely = {"logit_bias": {eos: 100.0}, "ignore_eos": True}
    found = run(core, [make_request(tiny.prompt("llama"), min_tokens=3, max_tokens=6, **likely)])
    tokens = found["r"].tokens
    assert eos not in tokens[:3]
    assert tokens[3:] == [eos] * 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"min_tokens": 1, "stop_token_ids": tuple(range(97))}, "no token to draw"),
        ({"min_tokens": 13}, "from 0 to max_tokens, which is 12"),
        ({"min_tokens": -1}, "from 0 to max_tokens"),
        ({"stop_token_ids": (97,)}, "not in the vocabulary"),
    ],
)
def test_what_can_never_be_is_refused(asked: Any, message: str) -> None:
    request = make_request(tiny.prompt("llama"), max_tokens=MOST, **asked)
    assert message in run(core_with("llama"), [request])["r"].last.error


def test_a_repetition_penalty_near_nothing_leaves_something_to_draw() -> None:
    prompt = tiny.prompt("llama")
    request = make_request(prompt, temperature=1.0, repetition_penalty=1e-300, ignore_eos=True)
    result = run(core_with("llama"), [request])["r"]
    assert result.last.error is None
    assert set(result.tokens) <= set(prompt.tokens)
