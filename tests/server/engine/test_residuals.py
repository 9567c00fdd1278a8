"""Edits of residuals and of head outputs through the engine equal hooks on transformers' own model.

Each method is written out in steered.py and here; the oracle recomputes the whole sequence for
every token, in float64. The engine chunks, caches, batches and reads float32 tables.
"""

from typing import Any

import pytest
import torch

from saccade_testing import steered, tiny
from saccade_testing.engine import MakeCore, make_request, run
from saccade_testing.oracle import check

FAMILY_CASES = [
    ("llama", "add rms", "last+generated"),
    ("qwen3", "project out", "prompt+generated"),
    ("llava", "clamp", "question+generated"),
    ("qwen2_5_vl", "add, same norm", "prompt"),
    ("qwen3_vl", "half out, same norm", "prompt+generated"),
    ("llama", "add", "generated"),
    ("llama", "add unit", "last"),
    ("qwen3", "piecewise", "prompt+generated"),
    ("qwen3", "cap", "last+generated"),
]


@pytest.mark.parametrize(("family", "name", "rows"), FAMILY_CASES)
def test_steering(family: str, name: str, rows: str, make_core: MakeCore) -> None:
    """Prompts in chunks and whole; then again, from a cached prefix where there is one."""
    prompt = tiny.prompt(family, images=int(family in tiny.IMAGE_FAMILIES), seed=1, text=70)
    wanted = steered.Oracle(
        tiny.build(family), rows, residual=steered.at_residuals(steered.STEERING[name][1])
    ).run(prompt)
    plain = steered.Oracle(tiny.build(family), rows).run(prompt)
    assert wanted[-1] != plain[-1], "the case must exercise the edit"
    for budget in (512, 16):
        core = make_core(family, max_batched_tokens=budget)
        plan = steered.plan_for(core, prompt, [steered.steering(name, rows)])
        for turn in ("cold", "warm"):
            request = make_request(prompt, turn, plan, steered.STEPS, logprobs=1, ignore_eos=True)
            result = run(core, [request])[turn]
            check(result, wanted)
        assert result.last.cached_tokens >= 64


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ("sigma", "scale")),
        ("qwen3", ("raw", "zero")),
        ("llava", ("unit", "mean")),
        ("qwen2_5_vl", ("sigma", "scale")),
        ("qwen3_vl", ("unit", "mean")),
    ],
)
def test_heads(family: str, names: tuple[str, ...], make_core: MakeCore) -> None:
    rows = {"sigma": "last+generated", "scale": "prompt+generated"}.get(names[0], "prompt")
    prompt = tiny.prompt(family, images=int(family in tiny.IMAGE_FAMILIES), seed=2, text=30)
    core = make_core(family, max_batched_tokens=24)
    for name in names:
        entry, edit = steered.HEAD_CASES[name]
        wanted = steered.heads_oracle(tiny.build(family), rows, edit).run(prompt, 4)
        plan = steered.plan_for(core, prompt, [{**entry, "rows": rows}])
        request = make_request(prompt, name, plan, 4, logprobs=1, ignore_eos=True)
        check(run(core, [request])[name], wanted)


def test_heads_by_layer_are_the_artifacts(make_core: MakeCore) -> None:
    core, prompt = make_core("llama"), tiny.prompt("llama")
    listed = steered.plan_for(core, prompt, [steered.HEAD_CASES["scale, listed"][0]])
    named = {**steered.HEAD_CASES["scale"][0], "gain": 3}
    assert steered.plan_for(core, prompt, [named]).fingerprint() == listed.fingerprint()


def test_uniform_ablation(make_core: MakeCore) -> None:
    """The mean of the values that the row sees: the values are written out from the layer."""
    prompt = tiny.prompt("llama", seed=2, text=30)
    model = tiny.build("llama")
    values: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(model.get_decoder().layers):
        keep = lambda module, args, output, index=index: values.update({index: output[0]})
        layer.self_attn.v_proj.register_forward_hook(keep)

    def heads(layer: int, z: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        for at, head in steered.PAIRS:
            if at == layer:
                v = values[layer].reshape(len(z), 2, steered.DIM)[:, head // 2]
                mean = v.cumsum(0) / torch.arange(1, len(z) + 1)[:, None]
                z[:, head] += rows * (mean - z[:, head])
        return z

    wanted = steered.Oracle(model, "last+generated", heads=heads).run(prompt)
    core = make_core("llama", max_batched_tokens=16)
    entry = {"method": "head_ablation", "mode": "uniform", "artifact": steered.LISTED.digest}
    plan = steered.plan_for(core, prompt, [{**entry, "rows": "last+generated"}])
    request = make_request(prompt, "r", plan, steered.STEPS, logprobs=1, ignore_eos=True)
    check(run(core, [request])["r"], wanted)


@pytest.mark.parametrize("layer", [None, 0, 3])
def test_function_vector(layer: int | None, make_core: MakeCore) -> None:
    """Added at the output of a layer; the last layer's output has no layer behind it."""
    prompt = tiny.prompt("llava", images=1, seed=4)
    place = 3 if layer is None else layer + 1

    def residual(index: int, h: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return h + rows * steered.VECTORS[0] if index == place else h

    wanted = steered.Oracle(tiny.build("llava"), "last+generated", residual=residual).run(prompt)
    core = make_core("llava")
    entry = {"method": "function_vector", "artifact": steered.TASK.digest, "layer": layer}
    plan = steered.plan_for(core, prompt, [entry])
    request = make_request(prompt, "r", plan, steered.STEPS, logprobs=1, ignore_eos=True)
    check(run(core, [request])["r"], wanted)


def test_chains_run_in_the_order_of_the_request(make_core: MakeCore) -> None:
    """Three methods at the same residuals, and gains and shifts of the same heads."""
    prompt = tiny.prompt("qwen2_5_vl", images=1, seed=5)
    names = ("add", "clamp", "half out, same norm")
    rows = "prompt+generated"

    def chained(order: tuple[str, ...]) -> Any:
        def residual(index: int, h: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
            for name in order:
                h = steered.at_residuals(steered.STEERING[name][1])(index, h, where)
            return h

        return residual

    def heads(layer: int, z: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        for place, (at, head) in enumerate(steered.PAIRS):
            if at == layer:
                changed = -1.5 * (z[:, head] + 0.3 * steered.HEAD_VECTORS[place])
                z[:, head] += where * (changed - z[:, head])
        return z

    core = make_core("qwen2_5_vl", max_batched_tokens=20)
    found = set()
    for number, order in enumerate((names, names[::-1])):
        entries = [steered.steering(name, rows) for name in order]
        entries += [{**steered.HEAD_CASES[name][0], "rows": rows} for name in ("raw", "scale")]
        plan = steered.plan_for(core, prompt, entries)
        oracle = steered.Oracle(
            tiny.build("qwen2_5_vl"), rows, residual=chained(order), heads=heads
        )
        request = make_request(
            prompt, str(number), plan, steered.STEPS, logprobs=1, ignore_eos=True
        )
        result = run(core, [request])[str(number)]
        check(result, oracle.run(prompt))
        found.add(result.logprobs[0].logprob)
    assert len(found) == 2, "the order must matter"
