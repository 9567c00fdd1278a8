"""VCD, PAI's contrast and DoLa in the engine, against their formulas on transformers' own logits.

Each answer is repeated by the test: for every token two (or, for DoLa, one) full forward passes of
transformers in float64, the formula, and the draw.
"""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from saccade_interventions.methods.dola import DoLa
from saccade_interventions.methods.pai import PAI
from saccade_interventions.methods.pai_contrast import PAIContrast
from saccade_interventions.methods.sgrs import SGRS
from saccade_interventions.methods.vcd import VCD
from saccade_kernels.distributions import contrast, divergence
from saccade_testing import tiny
from saccade_testing.distributions import agrees, changed, choose, decode, outputs
from saccade_testing.engine import MakeCore, ask, core_with, run

IMAGE_FAMILIES = ("llava", "llava_next", "smolvlm", "qwen2_5_vl", "qwen3_vl")


def noisy(prompt: Any, step: int, seed: int) -> Any:
    """The prompt with VCD's images, by the formula of the paper; seeds: requests/branches.py."""
    beta = torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64)) * (0.005 - 1e-5) + 1e-5
    abar = (1 - beta).cumprod(0)[step].item()
    images = []
    for index, image in enumerate(prompt.images):
        rng = np.random.default_rng((seed, index))
        if image.pixels.ndim > 2:
            noise = rng.standard_normal(image.pixels.shape, np.float32)
        else:
            patches = len(image.pixels)
            noise = rng.standard_normal((patches, 3, 1, 64), np.float32)
            noise = np.repeat(noise, 2, axis=2).reshape(patches, -1)
        mixed = abar**0.5 * image.pixels + (1 - abar) ** 0.5 * noise
        images.append(replace(image, pixels=mixed.astype(np.float32)))
    return replace(prompt, images=tuple(images))


def formula(own: torch.Tensor, other: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """(1 + a) l - a l' on raw logits, and the plausibility cut on l, as VCD's code has it."""
    mixed = (1 + alpha) * own - alpha * other
    return mixed.masked_fill(own < own.max() + np.log(beta), -torch.inf)


SAMPLINGS = [{}, {"temperature": 0.8, "seed": 5}]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_vcd(family: str, sampling: Any, make_core: MakeCore) -> None:
    model, prompt = tiny.build(family), tiny.prompt(family, images=2, seed=3)
    noised = noisy(prompt, 600, 7)

    def scores(answer: list[int]) -> torch.Tensor:
        tokens = [*prompt.tokens, *answer]
        own = outputs(model, tokens, prompt).logits[0, -1]
        return formula(own, outputs(model, tokens, noised).logits[0, -1], 1.5, 0.02)

    method = VCD(alpha=1.5, beta=0.02, noise_step=600, noise_seed=7)
    request = ask(prompt, [method], logprobs=2, **sampling)
    result = run(make_core(family), [request])["r"]
    agrees(result, *decode(scores, 8, sampling.get("temperature", 0), 5))
    plain = run(make_core(family), [ask(prompt, [], **sampling)])["r"]
    assert plain.tokens != result.tokens
    (counter,) = result.last.receipt.counters
    assert (counter.source, counter.name, counter.value) == (0, "contrasted", 8)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_pai_contrast(family: str, sampling: Any, make_core: MakeCore) -> None:
    model, prompt = tiny.build(family), tiny.prompt(family, images=2, seed=3)
    text = prompt.bare
    assert tiny.IMAGE_TOKEN not in text

    def scores(answer: list[int]) -> torch.Tensor:
        own = outputs(model, [*prompt.tokens, *answer], prompt).logits[0, -1]
        other = outputs(model, [*text, *answer]).logits[0, -1]
        s, u = own.log_softmax(-1), other.log_softmax(-1)
        return (2.5 * (s - u) + u).masked_fill(s < s.max() + np.log(0.05), -torch.inf)

    request = ask(prompt, [PAIContrast(gamma=2.5, cutoff=0.05)], logprobs=2, **sampling)
    result = run(make_core(family), [request])["r"]
    agrees(result, *decode(scores, 8, sampling.get("temperature", 0), 5))


@pytest.mark.parametrize("kind", ["dola", "jsd"])
@pytest.mark.parametrize(
    ("layers", "norm"), [([0, 1, 2, 3], False), ([1, 3], True), ([2], False), ("low", True)]
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_dola(family: str, layers: Any, norm: bool, kind: str, make_core: MakeCore) -> None:
    model, prompt = tiny.build(family), tiny.prompt(family, seed=3)
    chosen: list[int] = []

    def scores(answer: list[int]) -> torch.Tensor:
        out = outputs(model, [*prompt.tokens, *answer])
        final = out.logits[0, -1].log_softmax(-1)
        early = {}
        for layer in [0] if layers == "low" else layers:
            hidden = out.hidden_states[layer][0, -1]
            hidden = model.model.norm(hidden) if norm else hidden
            early[layer] = model.lm_head(hidden).log_softmax(-1)
        best = max(early, key=lambda layer: gap(final, early[layer], kind))
        chosen.append(best)
        return (final - early[best]).masked_fill(final < final.max() + np.log(0.1), -torch.inf)

    method = DoLa(layers=layers, early_norm=norm, divergence=kind)
    sampling = {"temperature": 0.8, "seed": 5} if norm else {}
    result = run(make_core(family), [ask(prompt, [method], logprobs=2, **sampling)])["r"]
    agrees(result, *decode(scores, 8, sampling.get("temperature", 0), 5))
    assert len(layers) < 4 or layers == "low" or len(set(chosen)) > 1


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_dola_beside_images(family: str, make_core: MakeCore) -> None:
    """Layer 1 of Qwen3-VL is where the first image features were added below."""
    model, prompt = tiny.build(family), tiny.prompt(family, seed=3)
    norm = model.get_decoder().norm

    def scores(answer: list[int]) -> torch.Tensor:
        out = outputs(model, [*prompt.tokens, *answer], prompt)
        final = out.logits[0, -1].log_softmax(-1)
        early = [model.lm_head(norm(out.hidden_states[j][0, -1])).log_softmax(-1) for j in (1, 3)]
        first, second = (gap(final, log_q, "dola") for log_q in early)
        d = final - early[second > first]
        return d.masked_fill(final < final.max() + np.log(0.1), -torch.inf)

    method = DoLa(layers=[1, 3], early_norm=True)
    result = run(make_core(family), [ask(prompt, [method], logprobs=2)])["r"]
    agrees(result, *decode(scores, 8))


def gap(log_p: torch.Tensor, log_q: torch.Tensor, kind: str) -> float:
    p, q = log_p.exp(), log_q.exp()
    m = (p + q) / 2
    if kind == "jsd":
        return float(((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2)
    kl = torch.nn.functional.kl_div
    first = kl(log_p, m, reduction="none").mean()
    return float(0.5 * (first + kl(log_q, m, reduction="none").mean()))


def test_worked_examples() -> None:
    """Of methods/baselines.md: VCD, PAI and DoLa on four tokens."""
    clean = torch.tensor([[2, 1.5, 0, -3]], dtype=torch.float64).log_softmax(-1)
    noised = torch.tensor([[1, 1.8, 0.2, -3]], dtype=torch.float64).log_softmax(-1)
    cut = torch.tensor([[0.1]], dtype=torch.float64).log()

    def one(value: float) -> torch.Tensor:
        return torch.tensor([[value]], dtype=torch.float64)

    d = contrast(clean, noised, one(2), one(1), cut)
    expected = torch.tensor([[0.829145, 0.137057, 0.033798, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(d.softmax(-1), expected, rtol=0, atol=1e-6)
    d = contrast(clean, noised, one(1.1), one(0.1), cut)
    expected = torch.tensor([[-0.484051, -1.114051, -2.604051, -torch.inf]], dtype=torch.float64)
    torch.testing.assert_close(d, expected, rtol=0, atol=1e-6)
    mature = torch.tensor([[3.0, 2, 0, -1]], dtype=torch.float64).log_softmax(-1)
    first = torch.tensor([[1, 2, 0.5, -1]], dtype=torch.float64).log_softmax(-1)
    second = torch.tensor([[2.5, 2, 0, -1]], dtype=torch.float64).log_softmax(-1)
    for kind, far, near in (("dola", 0.032547, 0.001796), ("jsd", 0.118568 / 4, 0.007139 / 4)):
        assert divergence(mature, first, kind).item() == pytest.approx(far, abs=1e-6)
        assert divergence(mature, second, kind).item() == pytest.approx(near, abs=1e-6)
    d = contrast(mature, first, one(1), one(1), cut)
    kept = torch.tensor([1.133333, -0.866667], dtype=torch.float64)
    torch.testing.assert_close(d[0, :2], kept, rtol=0, atol=1e-6)
    assert (d[0, 2:] == -torch.inf).all()


@pytest.mark.parametrize("edited", [False, True])
def test_the_clean_sequence_is_edited_and_the_branch_if_asked(
    edited: bool, make_core: MakeCore
) -> None:
    """Against the engine's own distributions under PAI, for the clean and the noised images."""
    prompt = tiny.prompt("llava", seed=6)
    pai, method = PAI(alpha=1.5), VCD(alpha=1.0, beta=0.01, edit_branch=edited)
    noised = noisy(prompt, 500, 0)

    def distribution(seen: Any, methods: Any) -> torch.Tensor:
        asked = ask(seen, methods, max_tokens=1, logprobs=97)
        (entry,) = run(make_core("llava"), [asked])["r"].logprobs
        return torch.tensor([value for _, value in sorted(entry.top)], dtype=torch.float64)

    own, other = distribution(prompt, [pai]), distribution(noised, [pai] if edited else [])
    wanted = formula(own, other, 1.0, 0.01).log_softmax(-1)
    found = distribution(prompt, [pai, method])
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    assert found.isinf().any()


CHANGES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 2.0},
    "below-one": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.5, "frequency_penalty": 0.7},
    "bias": {"logit_bias": {15: 3.0, 11: -100.0, 40: 2.5}},
    "all": {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.5,
        "logit_bias": {17: 2.0, 5: -100.0},  # no image token, for transformers' sake
        "min_tokens": 5,
        "stop_token_ids": (2, *range(0, 97, 3)),  # the end-of-sequence token among them
        "temperature": 0.8,
        "seed": 5,
    },
}


@pytest.mark.parametrize(
    ("change", "cutoff"),
    [
        ("repetition", 0),
        ("repetition", 0.1),
        ("below-one", 0.1),
        ("presence", 0),
        ("bias", 0.1),
        ("all", 0.1),
    ],
)
@pytest.mark.parametrize("rule", ["vcd", "pai_contrast", "dola"])
def test_changes_of_single_logits_act_on_raw_logits(
    rule: str, cutoff: float, change: str, make_core: MakeCore
) -> None:
    """On those of every view, before log-softmax; of an early layer's on the final ones alone.

    What is reported is the rule's distribution without them.
    """
    asked = {"ignore_eos": True, **CHANGES[change]}
    model, prompt = tiny.build("llava"), tiny.prompt("llava", images=2, seed=3)
    text = prompt.bare
    noised = noisy(prompt, 600, 7)
    methods = {
        "vcd": VCD(alpha=1.5, beta=cutoff, noise_step=600, noise_seed=7),
        "pai_contrast": PAIContrast(gamma=2.5, cutoff=cutoff),
        "dola": DoLa(layers=[2], relative_top=cutoff),
    }
    own_weight, other_weight = {"vcd": (2.5, 1.5), "pai_contrast": (2.5, 1.5), "dola": (1, 1)}[rule]

    def views(answer: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        out = outputs(model, [*prompt.tokens, *answer], prompt)
        if rule == "dola":
            return out.logits[0, -1], model.lm_head(out.hidden_states[2][0, -1])
        if rule == "vcd":
            other = outputs(model, [*prompt.tokens, *answer], noised)
        else:
            other = outputs(model, [*text, *answer])
        return out.logits[0, -1], other.logits[0, -1]

    def contrasted(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        p, q = own.log_softmax(-1), other.log_softmax(-1)
        excluded = torch.isneginf(p)
        if cutoff:
            excluded |= p < p.max() + np.log(cutoff)
        return (own_weight * p - other_weight * q).masked_fill(excluded, -torch.inf)

    answer: list[int] = []
    said: list[torch.Tensor] = []
    for position in range(8):
        with torch.inference_mode():
            own, other = views(answer)
        said.append(contrasted(own, other).log_softmax(-1))
        both = rule != "dola"
        d = contrasted(
            changed(own, prompt, answer, asked),
            changed(other, prompt, answer, asked) if both else other,
        )
        answer.append(choose(d, asked.get("temperature", 0), 5, position))
    request = ask(prompt, [methods[rule]], logprobs=0, **asked)
    plain = ask(prompt, [methods[rule]], "plain", logprobs=97)
    results = run(make_core("llava"), [request, plain])
    result = results["r"]
    assert result.last.error is None
    assert result.tokens == answer[: len(result.tokens)]
    assert len(result.tokens) in (8, *range(asked.get("min_tokens", 8) + 1, 8))
    for entry, log_probs in zip(result.logprobs, said, strict=False):
        assert entry.logprob == pytest.approx(log_probs[entry.token].item(), abs=2e-5)
    # What one request changes is nobody else's: to the bit what it gets alone.
    if change == "all":
        alone = run(make_core("llava"), [plain])["plain"]
        for found in (results["plain"], alone):
            found.last = msgspec.structs.replace(found.last, timing=None)
        assert results["plain"] == alone


@pytest.mark.parametrize("cutoff", [0.0, 0.5])
@pytest.mark.parametrize("rule", ["vcd", "pai_contrast", "dola", "sgrs"])
def test_a_bias_of_100_forces_and_bans(rule: str, cutoff: float) -> None:
    """Whatever the cutoff excludes, and however far the second distribution disagrees."""
    prompt, core = tiny.prompt("llava", images=1, seed=3), core_with("llava")
    method = {
        "vcd": VCD(alpha=10, beta=cutoff, noise_step=999),
        "pai_contrast": PAIContrast(gamma=3, cutoff=cutoff),
        "dola": DoLa(layers=[0], relative_top=cutoff),
        "sgrs": SGRS(layers=[1, 2], alpha=5),  # rejects nearly everything
    }[rule]
    free = run(core, [ask(prompt, [method])])["r"].tokens
    for temperature in (0.0, 1.0):
        settings = {"temperature": temperature, "seed": 3}
        banned = ask(prompt, [method], logit_bias=dict.fromkeys(free, -100.0), **settings)
        result = run(core, [banned])["r"]
        assert result.last.error is None
        assert not set(result.tokens) & set(free)
        least = next(token for token in range(97) if token not in free)
        forced = run(core, [ask(prompt, [method], logit_bias={least: 100.0}, **settings)])["r"]
        assert forced.tokens == [least] * 8
