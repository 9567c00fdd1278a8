"""Sinks in generated text and in prompts: equal to the formula, and only new tokens are settled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.methods.var import VAR
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_kernels.controls import ControlShape
from saccade_server.engine.core import EngineCore
from saccade_testing import oracle, tiny
from saccade_testing.engine import MakeCore, core_with, make_request, run

STEPS = 12
DIMS, TAU, LOOKS, RHO, MOVE = (3, 11), 1.0, 0.02, 0.3, 0.6
RARE = 1.9  # few generated tokens of the tiny model are sinks by this threshold
FIELDS: dict[str, Any] = {
    "tau": TAU,
    "sink_dims": list(DIMS),
    "move_fraction": MOVE,
    "min_visual_mass": LOOKS,
    "rho": RHO,
    "layers": [1, 2],
}
Edit = Callable[[int, torch.Tensor, dict[int, torch.Tensor]], torch.Tensor]


def plan_for(core: EngineCore, prompt: Any, **options: Any) -> Plan:
    info = core.info
    facts = ModelFacts(info.layers, info.heads, info.kv_heads, info.head_dim, info.hidden_size)
    spans = tuple((image.start, image.start + image.length) for image in prompt.images)
    context = Context(facts, Prompt(length=len(prompt.tokens), images=spans))
    plan = compile_plan([VAR(**{**FIELDS, **options})], context)
    assert plan is not None
    return plan


def var(prompt: Any, seen: set[int], **options: Any) -> Edit:
    """var.md section 2, key by key; ``seen`` collects generated keys that were sinks."""

    def edit(layer: int, scores: torch.Tensor, residuals: dict[int, torch.Tensor]) -> torch.Tensor:
        weights = scores.softmax(-1)
        if layer not in FIELDS["layers"]:
            return weights
        x, keys = residuals[layer], scores.shape[2]
        phi = x[:, list(DIMS)].abs().amax(-1) / (x.square().mean(-1) + 1e-6).sqrt()
        examined = keys if options.get("sinks_in_generated") else len(prompt.tokens)
        sinks = (phi >= TAU) & (torch.arange(keys) < examined)
        seen.update(k for k in sinks.nonzero().flatten().tolist() if k >= len(prompt.tokens))
        image = oracle.visual(prompt, keys)
        if "image_index" in options:
            chosen = prompt.images[options["image_index"]]
            image &= torch.arange(keys) >= chosen.start
            image &= torch.arange(keys) < chosen.start + chosen.length
        vs, vn, ts = sinks & image, ~sinks & image, sinks & ~image
        if options.get("require_visual_sink", True) and not vs.any():
            return weights
        first = max(i.start + i.length for i in prompt.images)
        if options.get("rows") == "generated":
            first = len(prompt.tokens)
        for head in range(scores.shape[0]):
            for row in range(first, scores.shape[1]):
                a = weights[head, row].clone()
                m_vs, m_vn, m_ts = a[vs].sum(), a[vn].sum(), a[ts].sum()
                if m_vs + m_vn >= LOOKS and m_vs <= (1 - RHO) * (m_vs + m_vn):
                    a[vs | ts] *= 1 - MOVE
                    a[vn] *= 1 + MOVE * (m_vs + m_ts) / m_vn
                weights[head, row] = a
        return weights

    return edit


OPTIONS: dict[str, dict[str, Any]] = {
    "generated sinks": {"sinks_in_generated": True},
    "generated sinks of any layer": {"sinks_in_generated": True, "require_visual_sink": False},
    "decode only": {"rows": "generated"},
    "decode only, generated sinks": {"rows": "generated", "sinks_in_generated": True},
    "second image": {"image_index": 1},
}


@pytest.mark.parametrize(
    ("family", "budget"),
    [
        ("llava", 512),
        ("llava", 16),
        ("llava_mistral", 16),
        ("llava_qwen2", 16),
        ("qwen2_5_vl", 16),
        ("qwen3_vl", 16),
    ],
)
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, family: str, budget: int) -> None:
    """The chunked runs are one step ahead and padded; the second request finds a cached prefix."""
    way = {"overlap": True, "padded_decode": True} if budget == 16 else {}
    core = core_with(family, max_batched_tokens=budget, **way)
    prompt = tiny.prompt(family, images=2, seed=1, text=60)
    plan = plan_for(core, prompt, **OPTIONS[name])
    seen: set[int] = set()
    edit = var(prompt, seen, **OPTIONS[name])
    wanted = oracle.Oracle(tiny.build(family), edit).run(prompt, STEPS)
    for place in ("cold", "warm"):
        request = make_request(prompt, place, plan, STEPS, logprobs=1, ignore_eos=True)
        result = run(core, [request])[place]
        assert result.tokens == [token for token, _ in wanted]
        found = np.array([entry.logprob for entry in result.logprobs])
        np.testing.assert_allclose(found, [value for _, value in wanted], atol=2e-6)
        assert result.last.receipt.moved
    assert result.last.cached_tokens == 64
    assert bool(seen) == ("generated sinks" in name)


def test_preempted_sequences_find_the_same_sinks(make_core: MakeCore) -> None:
    """Recomputed generated rows come in chunks; plain neighbours are not concerned."""
    core = make_core("llava", cache_tokens=64 * 6, max_batched_tokens=48)
    prompts = [tiny.prompt("llava", images=1, seed=s, text=40 + s) for s in range(5)]
    requests = []
    for index, prompt in enumerate(prompts):
        plan = plan_for(core, prompt, sinks_in_generated=True) if index != 2 else None
        requests.append(make_request(prompt, str(index), plan, 14, logprobs=1, ignore_eos=True))
    wanted = [run(make_core("llava"), [r])[r.request_id] for r in requests]
    results = run(core, requests)
    assert core.stats().preemptions > 0
    for alone in wanted:
        result = results[alone.last.request_id]
        assert result.tokens == alone.tokens
        found = [entry.logprob for entry in result.logprobs]
        assert found == pytest.approx([entry.logprob for entry in alone.logprobs], abs=1e-5)


def settled(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(positions settled, sequences that are whole) of each step's probe, as it is made."""
    sizes: list[tuple[int, int]] = []
    look = core._runner.rules[SinkRule].look

    def note(step: Any, asked: Any) -> Any:
        made = look(step, asked)
        probes = () if made is None else made.probes
        sizes.extend((len(p.tags.position), int(p.tags.whole.sum())) for p in probes)
        return made

    monkeypatch.setattr(core._runner.rules[SinkRule], "look", note)
    return sizes


def test_a_generated_token_settles_itself_alone(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = make_core("llava")
    prompt = tiny.prompt("llava", images=1, seed=1)
    plan = plan_for(core, prompt, sinks_in_generated=True)
    sizes = settled(core, monkeypatch)
    run(core, [make_request(prompt, "r", plan, 5, ignore_eos=True)])
    assert sizes == [(len(prompt.tokens), 1), *[(1, 0)] * 4]


def requiring(prompt: Any, what: str, threshold: float) -> Plan:
    """Raises generated sinks and lowers those of the prompt, where one of ``what`` is found."""
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), 0)
    told, sink, text, nothing = (builder.new_class() for _ in range(4))
    required = {"generated": sink, "prompt": text, "nothing": nothing}[what]
    builder.tag_generated(told)
    sites = tuple((layer, (0, 1, 2, 3)) for layer in (1, 2))
    builder.score(sites, [sink], parse_rows("generated"), bias=2.0)
    builder.score(sites, [text], parse_rows("generated"), bias=-1.5)
    remap = ((0, text), (told, sink))
    builder.rule(SinkRule(threshold, DIMS, (1, 2), remap, require=required, generated=True))
    return builder.build()


def test_where_a_generated_token_may_be_what_is_required_all_are_settled_again(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny.prompt("llama", seed=1)
    core = make_core("llama")
    sizes = settled(core, monkeypatch)
    request = make_request(
        prompt, "r", requiring(prompt, "generated", RARE), STEPS, logprobs=1, ignore_eos=True
    )
    result = run(core, [request])["r"]
    length = len(prompt.tokens)
    assert sizes == [(length + step, 1) for step in range(STEPS)]
    flips: list[bool] = []

    def edit(layer: int, scores: torch.Tensor, residuals: dict[int, torch.Tensor]) -> torch.Tensor:
        if layer in (1, 2):
            x, keys = residuals[layer], torch.arange(scores.shape[2])
            phi = x[:, list(DIMS)].abs().amax(-1) / (x.square().mean(-1) + 1e-6).sqrt()
            scores = scores.clone()
            for row in range(length, scores.shape[1]):
                sinks = (phi >= RARE) & (keys <= row)
                flips.append(bool((sinks & (keys >= length)).any()))
                if flips[-1]:
                    scores[:, row, sinks & (keys >= length)] += 2.0
                    scores[:, row, sinks & (keys < length)] -= 1.5
        return scores.softmax(-1)

    wanted = oracle.Oracle(tiny.build("llama"), edit).run(prompt, STEPS)
    assert set(flips) == {True, False}
    assert result.tokens == [token for token, _ in wanted]
    found = np.array([entry.logprob for entry in result.logprobs])
    np.testing.assert_allclose(found, [value for _, value in wanted], atol=2e-6)


def test_what_the_row_s_former_owner_required_is_forgotten(make_core: MakeCore) -> None:
    """One tag row, in turn for a request whose requirement is met and one whose is not."""
    prompt = tiny.prompt("llama", seed=1)
    core = make_core("llama", max_num_seqs=1)
    found = []
    for what in ("prompt", "nothing", "prompt"):
        plan = requiring(prompt, what, TAU)
        request = make_request(prompt, "r", plan, 6, logprobs=1, ignore_eos=True)
        found.append(run(core, [request])["r"].logprobs)
    plain = make_request(prompt, "r", None, 6, logprobs=1, ignore_eos=True)
    unedited = run(make_core("llama", max_num_seqs=1), [plain])["r"].logprobs
    assert found[0] == found[2]
    assert [e.logprob for e in found[1]] == pytest.approx([e.logprob for e in unedited], abs=1e-6)
    assert found[0] != found[1]
