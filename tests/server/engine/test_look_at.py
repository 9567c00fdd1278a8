"""Look at, through the engine: its formula written out in transformers' own forward."""

from typing import Any

import numpy as np
import pytest
import torch

from saccade_interventions.registry import Registry
from saccade_server.engine.traces.data import AttentionReading
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, ask, run
from saccade_testing.oracle import Edit, Oracle, check
from saccade_testing.readings import with_trace

REGISTRY = Registry.discover()
STEPS = 7
LEFT: dict[str, Any] = {"method": "look_at", "regions": [{"image": 1, "box": [0, 0, 45, 60]}]}
"""The left half of the second image, which its tokens divide into columns here."""


def written_out(prompt: Any, bias: float, rest: float, rows: int, layers: range) -> Edit:
    inside, others = torch.zeros(2, 400, dtype=torch.bool)
    for view in prompt.images:
        if view.image == 1:
            middle = view.start + (view.length + 1) // 2
            inside[view.start : middle] = True
            others[middle : view.start + view.length] = True

    def edit(layer: int, scores: torch.Tensor, _: dict[int, torch.Tensor]) -> torch.Tensor:
        if layer not in layers:
            return scores.softmax(-1)
        count = scores.shape[2]
        added = bias * inside[:count] + rest * others[:count]
        edited = (torch.arange(scores.shape[1]) >= rows)[:, None]
        return torch.where(edited, scores + added.double(), scores).softmax(-1)

    return edit


@pytest.mark.parametrize("budget", [512, 16])
@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "internvl", "smolvlm", "qwen2_5_vl", "qwen3_vl"]
)
def test_a_box(family: str, budget: int, make_core: MakeCore) -> None:
    """Rows behind the images, chunk by chunk, then from a cached prefix that a plain one left."""
    core = make_core(family, max_batched_tokens=budget)
    prompt = tiny.prompt(family, images=2, seed=2, text=60)
    methods = REGISTRY.parse([{**LEFT, "strength": 2.5, "elsewhere": -1.5}])
    start = max(view.start + view.length for view in prompt.images)
    edit = written_out(prompt, 2.5, -1.5, start, range(4))
    wanted = Oracle(tiny.build(family), edit).run(prompt, STEPS)
    run(core, [ask(prompt, [], "plain", 1)])
    result = run(core, [ask(prompt, methods, "r", STEPS, logprobs=1)])["r"]
    check(result, wanted[: len(result.tokens)])
    assert result.last.cached_tokens >= 64  # pages before the question are anybody's


@pytest.mark.parametrize("padded", [False, True])
def test_suppressed_in_two_layers_and_all_rows(padded: bool, make_core: MakeCore) -> None:
    core = make_core("llava", padded_decode=padded)
    prompt = tiny.prompt("llava", images=2, seed=3, text=20)
    entry = {**LEFT, "strength": "suppress", "rows": "prompt+generated", "layers": [1, 2]}
    edit = written_out(prompt, -1e9, 0.0, 0, range(1, 3))
    methods = REGISTRY.parse([entry])
    result = run(core, [ask(prompt, methods, "r", STEPS, logprobs=1)])["r"]
    wanted = Oracle(tiny.build("llava"), edit).run(prompt, STEPS)
    check(result, wanted[: len(result.tokens)])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("strength", [-2.0, 1.5, 6.0])
def test_the_gaze_moves_by_the_formula(strength: float, padded: bool, make_core: MakeCore) -> None:
    """Of one layer, whose queries and keys no edit has changed: shares before and after."""
    prompt = tiny.prompt("llava", images=2, seed=3, text=20)
    last, layer = len(prompt.tokens) - 1, 1
    (view,) = (view for view in prompt.images if view.image == 1)
    region = (view.start, view.start + (view.length + 1) // 2)
    reading = AttentionReading(
        name="gaze", rows=(last, last + 1), layers=(layer,), heads=(0, 1, 2, 3), keys=((region,),)
    )
    core = make_core("llava", padded_decode=padded)
    entry = {**LEFT, "strength": strength, "layers": [layer], "heads": [1, 3]}
    methods = REGISTRY.parse([entry])
    plain, looking = ask(prompt, [], "plain", 2), ask(prompt, methods, "look", 2)
    requests = [with_trace(request, reading) for request in (plain, looking)]
    found = {name: result.trace["gaze"][0, 0] for name, result in run(core, requests).items()}
    before, after = found["plain"][:, 0].astype(float), found["look"][:, 0].astype(float)
    wanted = before * np.exp(strength) / (1 - before + before * np.exp(strength))
    np.testing.assert_allclose(after[[1, 3]], wanted[[1, 3]], rtol=2e-6)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
