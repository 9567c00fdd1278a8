"""Methods through the engine equal their formulas written out in transformers' own forward.

The oracle recomputes the whole sequence for every token, in float64, with dense attention and the
edit in its literal form; the engine chunks, caches, batches and reads float32 tables.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.registry import Registry
from saccade_server.engine.core import EngineCore
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, make_request, run

SINK_DIMS, TAU, LOOKS, RHO = (3, 11), 1.0, 0.02, 0.3
STEPS = 7
VAR = {"method": "var", "tau": TAU, "move_fraction": 0.6, "min_visual_mass": LOOKS, "rho": RHO}
Edit = Callable[[int, torch.Tensor, dict[int, torch.Tensor]], torch.Tensor]


def plan_for(core: EngineCore, prompt: Any, entries: list[dict[str, Any]]) -> Any:
    info = core.info
    facts = ModelFacts(
        layers=info.layers,
        heads=info.heads,
        kv_heads=info.kv_heads,
        head_dim=info.head_dim,
        hidden_size=info.hidden_size,
    )
    spans = tuple((image.start, image.start + image.length) for image in prompt.images)
    context = Context(facts, Prompt(length=len(prompt.tokens), images=spans))
    return compile_plan(Registry.discover().parse(entries), context)


class Oracle:
    """Greedy generation by full recomputation with ``edit(layer, scores, residuals) -> weights``.

    ``scores`` is [heads, rows, keys], causal entries at -inf.
    """

    def __init__(self, model: Any, edit: Edit) -> None:
        self.model = model
        residuals: dict[int, torch.Tensor] = {}

        def remember(index: int) -> Callable[..., None]:
            def hook(module: Any, args: Any, kwargs: Any) -> None:
                residuals[index] = (args[0] if args else kwargs["hidden_states"])[0]

            return hook

        for index, layer in enumerate(model.get_decoder().layers):
            layer.register_forward_pre_hook(remember(index), with_kwargs=True)

        def attention(
            module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **kw: Any
        ) -> tuple[torch.Tensor, None]:
            group = q.shape[1] // k.shape[1]
            k, v = k[0].repeat_interleave(group, 0), v[0].repeat_interleave(group, 0)
            scores = q[0] @ k.transpose(1, 2) * kw["scaling"]
            future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
            weights = edit(module.layer_idx, scores, residuals)
            return (weights @ v).transpose(0, 1)[None], None

        AttentionInterface.register("oracle", attention)
        kind = "oracle" if not hasattr(model.config, "vision_config") else {"text_config": "oracle"}
        model.set_attn_implementation(kind)

    @torch.no_grad()
    def run(self, prompt: Any) -> list[tuple[int, float]]:
        """(token, log-probability) of each greedy step."""
        tokens, found = list(prompt.tokens), []
        for _ in range(STEPS):
            ids = torch.tensor([tokens])
            inputs = {"input_ids": ids, "use_cache": False, **prompt.arguments(ids)}
            logprobs = self.model(**inputs).logits[0, -1].log_softmax(-1)
            token = int(logprobs.argmax())
            found.append((token, float(logprobs[token])))
            tokens.append(token)
        return found


def visual(prompt: Any, keys: int) -> torch.Tensor:
    flags = torch.zeros(keys, dtype=torch.bool)
    for image in prompt.images:
        flags[image.start : image.start + image.length] = True
    return flags


def pai(prompt: Any, alpha: float) -> Edit:
    def edit(layer: int, scores: torch.Tensor, _: dict[int, torch.Tensor]) -> torch.Tensor:
        if layer < 2:
            return scores.softmax(-1)
        rows = torch.arange(scores.shape[1]) >= len(prompt.tokens) - 1
        where = rows[:, None] & visual(prompt, scores.shape[2])[None] & scores.isfinite()
        return torch.where(where, scores + alpha * scores.abs(), scores).softmax(-1)

    return edit


def pasta(prompt: Any, span: tuple[int, int], alpha: float, layer: int, head: int) -> Edit:
    def edit(at: int, scores: torch.Tensor, _: dict[int, torch.Tensor]) -> torch.Tensor:
        weights = scores.softmax(-1)
        if at == layer:
            keys = torch.arange(scores.shape[2])
            outside = (keys < len(prompt.tokens)) & ~((keys >= span[0]) & (keys < span[1]))
            weights[head, :, outside] *= alpha
            weights = weights / weights.sum(-1, keepdim=True)
        return weights

    return edit


def var(prompt: Any, move: float, counted: list[int] | None = None) -> Edit:
    """var.md section 2, literally; layers 2 of 4 only (the first two and the last are skipped)."""

    def edit(layer: int, scores: torch.Tensor, residuals: dict[int, torch.Tensor]) -> torch.Tensor:
        weights = scores.softmax(-1)
        if layer != 2:
            return weights
        x = residuals[layer]
        rms = (x.square().mean(-1) + 1e-6).sqrt()
        phi = x[:, list(SINK_DIMS)].abs().max(-1).values / rms
        image = visual(prompt, scores.shape[2])
        sinks = (phi >= TAU) & (torch.arange(scores.shape[2]) < len(prompt.tokens))
        vs, vn, ts = sinks & image, ~sinks & image, sinks & ~image
        start = max(i.start + i.length for i in prompt.images)
        for head in range(scores.shape[0]):
            for row in range(start, scores.shape[1]):
                a = weights[head, row].clone()
                m_vs, m_vn, m_ts = a[vs].sum(), a[vn].sum(), a[ts].sum()
                if vs.any() and m_vs + m_vn >= LOOKS and m_vn >= RHO * (m_vs + m_vn):
                    omega = move * (m_vs + m_ts)
                    a[vs | ts] *= 1 - move
                    a[vn] *= 1 + omega / m_vn
                    if counted is not None:
                        counted.append(row)
                weights[head, row] = a
        return weights

    return edit


def check(result: Any, wanted: list[tuple[int, float]]) -> None:
    assert result.tokens == [token for token, _ in wanted]
    found = np.array([entry.logprob for entry in result.logprobs])
    np.testing.assert_allclose(found, [value for _, value in wanted], atol=2e-6)


@pytest.mark.parametrize("budget", [512, 13])
@pytest.mark.parametrize("family", ["llava", "llava_next", "smolvlm", "qwen2_5_vl", "qwen3_vl"])
def test_pai(family: str, budget: int, make_core: MakeCore) -> None:
    core = make_core(family, max_batched_tokens=max(budget, 16))
    prompt = tiny.prompt(family, images=2, seed=1)
    plan = plan_for(core, prompt, [{"method": "pai", "alpha": 0.7}])
    result = run(core, [make_request(prompt, "r", plan, STEPS, logprobs=1, ignore_eos=False)])["r"]
    wanted = Oracle(tiny.build(family), pai(prompt, 0.7)).run(prompt)
    check(result, wanted[: len(result.tokens)])


def test_pasta(make_core: MakeCore) -> None:
    core = make_core("llama")
    prompt = tiny.prompt("llama", seed=2, text=40)
    entry = {"method": "pasta", "spans": [[5, 12]], "heads": {"1": [3]}, "alpha": 0.05}
    plan = plan_for(core, prompt, [entry])
    result = run(core, [make_request(prompt, "r", plan, STEPS, logprobs=1)])["r"]
    wanted = Oracle(tiny.build("llama"), pasta(prompt, (5, 12), 0.05, 1, 3)).run(prompt)
    check(result, wanted[: len(result.tokens)])


@pytest.mark.parametrize("budget", [512, 16])
@pytest.mark.parametrize("family", ["llava", "llava_next", "smolvlm", "qwen2_5_vl", "qwen3_vl"])
def test_var(family: str, budget: int, make_core: MakeCore) -> None:
    """Sinks found from hidden states, chunk by chunk, then again from a cached prefix."""
    core = make_core(family, max_batched_tokens=budget)
    prompt = tiny.prompt(family, images=2, seed=1, text=60)
    entry = {**VAR, "sink_dims": list(SINK_DIMS)}
    plan = plan_for(core, prompt, [entry])
    counted: list[int] = []
    wanted = Oracle(tiny.build(family), var(prompt, 0.6, counted)).run(prompt)
    for name in ("cold", "warm"):
        result = run(core, [make_request(prompt, name, plan, STEPS, logprobs=1)])[name]
        check(result, wanted[: len(result.tokens)])
        moved = result.last.receipt.moved
        assert {site.layer for site in moved} == {2}
        assert counted, "the case must exercise the edit"
    assert result.last.cached_tokens >= 64


def test_every_row_that_moved_is_counted_once(make_core: MakeCore) -> None:
    core = make_core("llava", max_batched_tokens=16)
    prompt = tiny.prompt("llava", images=1, seed=1, text=30)
    entry = {**VAR, "sink_dims": list(SINK_DIMS)}
    plan = plan_for(core, prompt, [entry])
    result = run(core, [make_request(prompt, "r", plan, 1)])["r"]
    counted: list[int] = []
    oracle = Oracle(tiny.build("llava"), var(prompt, 0.6, counted))
    oracle.run(prompt)
    prompt_rows = [row for row in counted if row < len(prompt.tokens)]
    assert prompt_rows
    # The oracle went over the prompt STEPS times, the engine once.
    assert sum(site.rows for site in result.last.receipt.moved) == len(prompt_rows) // STEPS
