"""Sinks in generated text and in prompts: equal to the formula, and only new tokens are settled."""

from typing import Any

import numpy as np
import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.methods.var import VAR
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_kernels import ops
from saccade_kernels.controls import ControlShape
from saccade_server.engine.core import EngineCore
from saccade_testing import oracle, tiny
from saccade_testing.engine import MakeCore, core_with, make_request, plan_for, run
from saccade_testing.formulas import phi
from saccade_testing.formulas import var as moved
from saccade_testing.oracle import Edit

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


def plan_of(core: EngineCore, prompt: Any, **options: Any) -> Plan:
    plan = plan_for(core, prompt, [VAR(**{**FIELDS, **options})])
    assert plan is not None
    return plan


def var(prompt: Any, seen: set[int], **options: Any) -> Edit:
    """VAR with options; ``seen`` collects generated keys that were sinks."""

    def edit(layer: int, scores: torch.Tensor, residuals: dict[int, torch.Tensor]) -> torch.Tensor:
        weights = scores.softmax(-1)
        if layer not in FIELDS["layers"]:
            return weights
        keys, length = scores.shape[2], len(prompt.tokens)
        image = oracle.visual(prompt, keys)
        if "image_index" in options:
            chosen = prompt.images[options["image_index"]]
            image &= torch.arange(keys) >= chosen.start
            image &= torch.arange(keys) < chosen.start + chosen.length
        first = max(i.start + i.length for i in prompt.images)
        examined = keys if options.get("sinks_in_generated") else length
        sinks = phi(residuals[layer]) >= TAU
        seen.update(key for key in range(length, examined) if sinks[key])
        edited, _ = moved(
            weights,
            residuals[layer],
            image,
            examined,
            length if options.get("rows") == "generated" else first,
            needs_visual_sink=options.get("require_visual_sink", True),
        )
        return edited

    return edit


OPTIONS: dict[str, dict[str, Any]] = {
    "generated sinks": {"sinks_in_generated": True},
    "generated sinks of any layer": {"sinks_in_generated": True, "require_visual_sink": False},
    "decode only": {"rows": "generated"},
    "decode only, generated sinks": {"rows": "generated", "sinks_in_generated": True},
    "second image": {"image_index": 1},
}


def test_steps_say_whether_tags_of_earlier_keys_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do in a prompt's last row if it comes alone, and not where tokens are generated."""
    prompt = tiny.prompt("llava", images=1, seed=1, text=20)
    core = core_with("llava", max_batched_tokens=len(prompt.tokens) - 1)
    seen: list[tuple[int, bool]] = []
    attention = ops.attention

    def note(*arguments: Any) -> torch.Tensor:
        batch = arguments[3]
        seen.append((batch.num_decodes, batch.settles))
        return attention(*arguments)

    monkeypatch.setattr(ops, "attention", note)
    plan = plan_of(core, prompt, sinks_in_generated=True)
    run(core, [make_request(prompt, "r", plan, 3, ignore_eos=True)])
    assert list(dict.fromkeys(seen)) == [(0, False), (1, True), (1, False)]


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
    plan = plan_of(core, prompt, **OPTIONS[name])
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
        plan = plan_of(core, prompt, sinks_in_generated=True) if index != 2 else None
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
    plan = plan_of(core, prompt, sinks_in_generated=True)
    sizes = settled(core, monkeypatch)
    run(core, [make_request(prompt, "r", plan, 5, ignore_eos=True)])
    padded = core._runner._decoder is not None  # its rows settle themselves by a stage
    assert sizes == [(len(prompt.tokens), 1), *([] if padded else [(1, 0)] * 4)]


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
            keys = torch.arange(scores.shape[2])
            rare = phi(residuals[layer]) >= RARE
            scores = scores.clone()
            for row in range(length, scores.shape[1]):
                sinks = rare & (keys <= row)
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
