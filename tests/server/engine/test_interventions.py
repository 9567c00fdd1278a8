"""Methods through the engine equal their formulas written out in transformers' own forward."""

from typing import Any

import pytest
import torch

from saccade_testing import formulas, tiny
from saccade_testing.engine import MakeCore, make_request, plan_for, run
from saccade_testing.oracle import Edit, Oracle, check, visual

SINK_DIMS, TAU, LOOKS, RHO = (3, 11), 1.0, 0.02, 0.3
STEPS = 7
VAR = {"method": "var", "tau": TAU, "move_fraction": 0.6, "min_visual_mass": LOOKS, "rho": RHO}


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


def var(prompt: Any, counted: list[int] | None = None) -> Edit:
    """In layer 2 of 4 only: the first two and the last are skipped."""

    def edit(layer: int, scores: torch.Tensor, residuals: dict[int, torch.Tensor]) -> torch.Tensor:
        weights = scores.softmax(-1)
        if layer != 2:
            return weights
        image = visual(prompt, scores.shape[2])
        start = max(i.start + i.length for i in prompt.images)
        length = len(prompt.tokens)
        weights, edited = formulas.var(weights, residuals[layer], image, length, start)
        if counted is not None:
            counted.extend(edited.nonzero()[:, 1].tolist())
        return weights

    return edit


@pytest.mark.parametrize("budget", [512, 13])
@pytest.mark.parametrize("family", ["llava", "llava_next", "smolvlm", "qwen2_5_vl", "qwen3_vl"])
def test_pai(family: str, budget: int, make_core: MakeCore) -> None:
    core = make_core(family, max_batched_tokens=max(budget, 16))
    prompt = tiny.prompt(family, images=2, seed=1)
    plan = plan_for(core, prompt, [{"method": "pai", "alpha": 0.7}])
    result = run(core, [make_request(prompt, "r", plan, STEPS, logprobs=1, ignore_eos=False)])["r"]
    wanted = Oracle(tiny.build(family), pai(prompt, 0.7)).run(prompt, STEPS)
    check(result, wanted[: len(result.tokens)])


def test_pasta(make_core: MakeCore) -> None:
    core = make_core("llama")
    prompt = tiny.prompt("llama", seed=2, text=40)
    entry = {"method": "pasta", "spans": [[5, 12]], "heads": {"1": [3]}, "alpha": 0.05}
    plan = plan_for(core, prompt, [entry])
    result = run(core, [make_request(prompt, "r", plan, STEPS, logprobs=1)])["r"]
    wanted = Oracle(tiny.build("llama"), pasta(prompt, (5, 12), 0.05, 1, 3)).run(prompt, STEPS)
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
    wanted = Oracle(tiny.build(family), var(prompt, counted)).run(prompt, STEPS)
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
    oracle = Oracle(tiny.build("llava"), var(prompt, counted))
    oracle.run(prompt, STEPS)
    prompt_rows = [row for row in counted if row < len(prompt.tokens)]
    assert prompt_rows
    # The oracle went over the prompt STEPS times, the engine once.
    assert sum(site.rows for site in result.last.receipt.moved) == len(prompt_rows) // STEPS
