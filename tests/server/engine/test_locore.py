"""LocoRE through the engine equals its formula written out, whatever the engine does meanwhile."""

from typing import Any

import pytest
import torch
from msgspec import structs

from saccade_interventions.rules import Branch, ContrastRule, RecentRule
from saccade_server.engine.request import BranchInput, GenerateRequest
from saccade_testing import formulas, oracle, tiny
from saccade_testing.engine import MakeCore, core_with, make_request, plan_for, run
from saccade_testing.oracle import Edit, check

VARIANTS = ["renormalised", "literal", "score"]
STEPS = 12
LAYERS = (1, 2)  # round(9/32 * 4) to round(14/32 * 4)
LOCORE = {"method": "locore", "beta": 1.5, "window": 3}
SINK_DIMS, TAU, LOOKS, RHO = (3, 11), 1.0, 0.02, 0.3
VAR = {
    "method": "var",
    "tau": TAU,
    "move_fraction": 0.6,
    "min_visual_mass": LOOKS,
    "rho": RHO,
    "sink_dims": list(SINK_DIMS),
    "layers": [1, 2],
}


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


def windows(prompt: Any, rows: int, options: dict[str, Any]) -> torch.Tensor:
    """Which keys are recent to which rows, bool [rows, rows], from the paper's definition."""
    start = len(prompt.tokens)
    if options.get("region") == "after_image":
        start = max((image.start + image.length for image in prompt.images), default=0)
    nearest = 0 if options.get("include_self") else 1
    found = torch.zeros(rows, rows, dtype=torch.bool)
    for q in range(len(prompt.tokens), rows):
        for j in range(start, q + 1):
            found[q, j] = nearest <= q - j <= options["window"]
    return found


def locore(prompt: Any, **options: Any) -> Edit:
    """The three readings, each as it is written."""
    options = {**LOCORE, **options}
    factor = 1 + options["beta"]

    def edit(layer: int, scores: torch.Tensor, _: dict[int, torch.Tensor]) -> torch.Tensor:
        if layer not in LAYERS:
            return scores.softmax(-1)
        recent = windows(prompt, scores.shape[1], options)
        if options.get("variant") == "score":
            return torch.where(recent, scores * factor, scores).softmax(-1)
        weights = scores.softmax(-1)
        weights = torch.where(recent, weights * factor, weights)
        if options.get("variant") == "literal":
            return weights
        return weights / weights.sum(-1, keepdim=True)

    return edit


def ask(prompt: Any, plan: Any, name: str = "r", steps: int = STEPS) -> GenerateRequest:
    return make_request(prompt, name, plan, steps, logprobs=1, ignore_eos=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_reading_in_every_family(family: str, variant: str) -> None:
    """One step ahead, padded, and with prompts in chunks; qwen3 has layers with short sight."""
    prompt = tiny.prompt(family, images=1, seed=1)
    way = {"overlap": True, "padded_decode": True} if variant != "literal" else {}
    core = core_with(family, max_batched_tokens=16, **way)
    plan = plan_for(core, prompt, [{**LOCORE, "variant": variant}])
    result = run(core, [ask(prompt, plan)])["r"]
    wanted = oracle.Oracle(tiny.build(family), locore(prompt, variant=variant)).run(prompt, STEPS)
    check(result, wanted)
    assert result.last.receipt.rows["generated"] == STEPS - 1


OPTIONS = {
    "longer than the output": {"window": 50},
    "one key": {"window": 1},
    "own key": {"window": 2, "include_self": True},
    "own key alone": {"window": 1, "include_self": True},
    "after the image": {"window": 6, "region": "after_image"},
    "after the image, far": {"window": 400, "region": "after_image", "include_self": True},
}


@pytest.mark.parametrize("family", ["llama", "llava"])
@pytest.mark.parametrize("options", OPTIONS)
def test_windows(family: str, options: str) -> None:
    way = {"overlap": True, "padded_decode": True} if family == "llama" else {}
    prompt = tiny.prompt(family, images=2, seed=3)
    core = core_with(family, **way)
    plan = plan_for(core, prompt, [{**LOCORE, **OPTIONS[options]}])
    result = run(core, [ask(prompt, plan)])["r"]
    edit = locore(prompt, **OPTIONS[options])
    check(result, oracle.Oracle(tiny.build(family), edit).run(prompt, STEPS))


def var_then(prompt: Any, after: Edit) -> Edit:
    """VAR of the attention that ``after`` gives, in LAYERS."""

    def edit(layer: int, scores: torch.Tensor, residuals: dict[int, torch.Tensor]) -> torch.Tensor:
        weights = after(layer, scores, residuals)
        if layer not in LAYERS:
            return weights
        image = oracle.visual(prompt, scores.shape[2])
        first = max(i.start + i.length for i in prompt.images)
        return formulas.var(weights, residuals[layer], image, len(prompt.tokens), first)[0]

    return edit


@pytest.mark.parametrize("region", ["generated", "after_image"])
@pytest.mark.parametrize("first", [0, 1])
def test_with_var(first: int, region: str, make_core: MakeCore) -> None:
    """A key of the question may be recent and a sink of one layer, and is one again later."""
    prompt = tiny.prompt("llava", images=2, seed=1, text=30)
    core = make_core("llava", max_batched_tokens=16)
    entries = [VAR, {**LOCORE, "region": region, "window": 6}]
    plan = plan_for(core, prompt, (entries if first == 0 else entries[::-1]))
    assert plan.classes == (5 if region == "generated" else 6)
    result = run(core, [ask(prompt, plan)])["r"]
    edit = var_then(
        prompt,
        locore(prompt, region=region, window=6),
    )
    check(result, oracle.Oracle(tiny.build("llava"), edit).run(prompt, STEPS))
    assert {site.layer for site in result.last.receipt.moved} == set(LAYERS)


def test_with_pai(make_core: MakeCore) -> None:
    """Both read the unedited score."""
    prompt = tiny.prompt("qwen2_5_vl", images=1, seed=2)
    core = make_core("qwen2_5_vl")
    pai = {"method": "pai", "alpha": 0.7, "layers": list(LAYERS)}
    plan = plan_for(core, prompt, [pai, LOCORE])
    result = run(core, [ask(prompt, plan)])["r"]

    def edit(layer: int, scores: torch.Tensor, residuals: dict[int, torch.Tensor]) -> torch.Tensor:
        if layer in LAYERS:
            rows = torch.arange(scores.shape[1])[:, None] >= len(prompt.tokens) - 1
            where = rows & oracle.visual(prompt, scores.shape[2]) & scores.isfinite()
            recent = windows(prompt, scores.shape[1], LOCORE)
            image, near = 0.7 * scores.abs(), torch.tensor(2.5, dtype=torch.float64).log()
            scores = scores + torch.where(where, image, 0) + torch.where(recent, near, 0)
        return scores.softmax(-1)

    check(result, oracle.Oracle(tiny.build("qwen2_5_vl"), edit).run(prompt, STEPS))


KINDS: dict[str, tuple[dict[str, Any], ...]] = {
    "plain": (),
    "near": (LOCORE,),
    "question": ({**LOCORE, "region": "after_image", "window": 9},),
    "literal": ({**LOCORE, "variant": "literal", "include_self": True},),
    "both": (VAR, LOCORE),
}


@pytest.mark.parametrize("config", [{}, {"max_batched_tokens": 20}, {"cache_tokens": 64 * 7}])
def test_mixed_batches_give_each_what_it_gets_alone(
    config: dict[str, int], make_core: MakeCore
) -> None:
    """Roomy; chunked; and so tight that sequences are preempted and each row sees its own window.

    The second prompts end just before a page, so that pages are filled with generated rows.
    """
    core = make_core("llava", **config)
    requests = []
    for index, text in enumerate((70, 40)):
        prompt = tiny.prompt("llava", images=1, seed=text, text=text)
        for kind, entries in KINDS.items():
            plan = plan_for(core, prompt, entries) if entries else None
            requests.append(ask(prompt, plan, f"{index}-{kind}", 14))
    wanted = {
        name: (result.tokens, [entry.logprob for entry in result.logprobs])
        for request in requests
        for name, result in run(make_core("llava", prefix_caching=False), [request]).items()
    }
    for _ in range(2):  # the second time whatever may be shared is cached
        for name, result in run(core, requests).items():
            tokens, logprobs = wanted[name]
            assert result.tokens == tokens, name
            found = [entry.logprob for entry in result.logprobs]
            assert found == pytest.approx(logprobs, abs=1e-5), name
    assert core.stats().preemptions > 0 or "cache_tokens" not in config
    assert core.stats().cache_usage == 0
    assert not core._runner.rules[RecentRule]._moves
    assert len({tuple(tokens) for tokens, _ in wanted.values()}) >= 8, "the plans must matter"


def test_with_sgrs(make_core: MakeCore) -> None:
    """Candidates are judged in the row as it was computed, its window included.

    A threshold of nearly nothing accepts every first candidate: LocoRE's own tokens, judged.
    """
    prompt = tiny.prompt("llava", images=1, seed=2)
    core = make_core("llava")
    sgrs = {"method": "sgrs", "alpha": 1e-6}
    wanted = run(core, [ask(prompt, plan_for(core, prompt, [LOCORE]))])["r"]
    both = ask(prompt, plan_for(core, prompt, [sgrs, LOCORE]))
    result = run(core, [both])["r"]
    assert result.tokens == wanted.tokens
    counters = {c.name: c.value for c in result.last.receipt.counters}
    assert counters == {"draws": STEPS}
    strict = plan_for(core, prompt, [{**sgrs, "alpha": 2.0}, LOCORE])
    again = [run(core, [ask(prompt, strict)])["r"] for _ in range(2)]
    assert again[0].tokens == again[1].tokens
    assert {c.name for c in again[0].last.receipt.counters} >= {"draws", "rejections"}


def test_a_branch_has_its_own_windows(make_core: MakeCore) -> None:
    """2 log p - log p of a branch with the same edits is log p, also after preemption.

    The branch without them is another distribution.
    """
    core = make_core("llava", cache_tokens=64 * 5)
    requests, wanted = [], {}
    for seed in range(3):
        prompt = tiny.prompt("llava", images=1, seed=seed, text=35)
        plan = plan_for(core, prompt, [LOCORE])
        alone = ask(prompt, plan, str(seed), 20)
        wanted[str(seed)] = run(make_core("llava"), [alone])[str(seed)].tokens
        rule = ContrastRule(2.0, 1.0, 0.0, branch=Branch("same", edited=True))
        branches = (BranchInput(tokens=alone.tokens, images=alone.images, plan=plan),)
        request = structs.replace(alone, plan=plan.with_rules(rule), branches=branches)
        requests.append(request)
    results = run(core, requests)
    assert {name: result.tokens for name, result in results.items()} == wanted
    assert core.stats().preemptions > 0
    plain = (structs.replace(requests[0].branches[0], plan=None),)
    other = run(core, [structs.replace(requests[0], branches=plain)])["0"]
    assert other.tokens != wanted["0"]


def test_a_neighbour_gets_the_same_bits(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llama", text=60)
    found = []
    for entries in KINDS["plain"], KINDS["near"]:
        core = make_core("llama", prefix_caching=False)
        plan = plan_for(core, prompt, entries) if entries else None
        requests = [ask(prompt, None, "a"), ask(prompt, plan, "b")]
        found.append(run(core, requests)["a"].logprobs)
    assert found[0] == found[1]


def test_a_conversation_goes_on(make_core: MakeCore) -> None:
    """Pages that the first answer filled are of no use to the second turn, whose prompt has it."""
    core = make_core("llama")
    first = tiny.prompt("llama", text=50)
    said = run(core, [ask(first, plan_for(core, first, [LOCORE]), steps=70)])["r"]
    second = tiny.TinyPrompt((*first.tokens, *said.tokens, 17, 23, 42))
    for entries in (), (LOCORE,), ({**LOCORE, "window": 9},):
        cold = make_core("llama", prefix_caching=False)
        plan = plan_for(core, second, entries) if entries else None
        wanted = run(cold, [ask(second, plan)])["r"]
        result = run(core, [ask(second, plan)])["r"]
        assert result.tokens == wanted.tokens
        assert [entry.logprob for entry in result.logprobs] == pytest.approx(
            [entry.logprob for entry in wanted.logprobs], abs=1e-6
        )
        assert result.last.cached_tokens == (0 if not entries else 64)


def test_no_strength_is_bit_for_bit_none(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llama")
    core = make_core("llama")
    neutral = plan_for(core, prompt, [{**LOCORE, "beta": 0.0}])
    assert neutral is None
    found = run(core, [ask(prompt, plan) for plan in (neutral,)])["r"].logprobs
    assert found == run(make_core("llama"), [ask(prompt, None)])["r"].logprobs
