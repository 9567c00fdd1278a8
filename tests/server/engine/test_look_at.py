"""Look at, through the engine: its formula written out in transformers' own forward."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from saccade_interventions.key_weights import KeyWeights
from saccade_interventions.registry import Registry
from saccade_server.engine.limits import why_refused
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


def factors_of(prompt: Any, columns: list[float], words: dict[int, float]) -> torch.Tensor:
    """Of every key, float64 [400]: the second image's columns, each of which a token shows, get the
    mean of what lies over it of weights from left to right; words get what is said.
    """
    found = torch.ones(400, dtype=torch.float64)
    (view,) = (view for view in prompt.images if view.image == 1)
    fine = torch.tensor(columns, dtype=torch.float64).repeat_interleave(view.length)
    found[view.start : view.start + view.length] = fine.view(view.length, -1).mean(1)
    for at, factor in words.items():
        found[at] = factor
    return found


def multiplied(layers: dict[int, torch.Tensor], rows: int) -> Edit:
    """A'_j = w_j A_j / C, of weights by layer, in rows from ``rows`` on."""

    def edit(layer: int, scores: torch.Tensor, _: dict[int, torch.Tensor]) -> torch.Tensor:
        plain = scores.softmax(-1)
        if layer not in layers:
            return plain
        weighed = plain * layers[layer][: scores.shape[2]]
        edited = (torch.arange(scores.shape[1]) >= rows)[:, None]
        return torch.where(edited, weighed / weighed.sum(-1, keepdim=True), plain)

    return edit


DRAWN: dict[str, Any] = {"method": "look_at", "regions": [{"image": 1, "weights": [[6, 0.2, 2]]}]}


@pytest.mark.parametrize("budget", [512, 16])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_a_map_and_weights_of_words(family: str, budget: int, make_core: MakeCore) -> None:
    """In one entry, and in two whose layers differ; chunk by chunk, then from a cached prefix."""
    core = make_core(family, max_batched_tokens=budget)
    prompt = tiny.prompt(family, images=2, seed=4, text=60)
    start = max(view.start + view.length for view in prompt.images)
    place = [start + 2, start + 5]
    words = {"tokens": place, "weights": [0, 30, 0.5]}
    image = DRAWN["regions"][0]
    own = factors_of(prompt, [6, 0.2, 2], {place[0]: 0, place[0] + 1: 30, place[0] + 2: 0.5})
    other = factors_of(prompt, [1, 1, 1], {place[0]: 0, place[0] + 1: 30, place[0] + 2: 0.5})
    alone = factors_of(prompt, [6, 0.2, 2], {})
    one = [{"method": "look_at", "regions": [image, words]}]
    two = [
        DRAWN,
        {"method": "look_at", "regions": [words], "layers": [1, 2], "heads": [0, 1, 2, 3]},
    ]
    both = {**dict.fromkeys((0, 3), alone), **dict.fromkeys((1, 2), alone * other)}
    run(core, [ask(prompt, [], "plain", 1)])
    for entries, layers in ((one, dict.fromkeys(range(4), own)), (two, both)):
        wanted = Oracle(tiny.build(family), multiplied(layers, start)).run(prompt, STEPS)
        asked = ask(prompt, REGISTRY.parse(entries), "r", STEPS, logprobs=1)
        assert len(asked.plan.key_weights) == len(entries)
        result = run(core, [asked])["r"]
        check(result, wanted[: len(result.tokens)])
        assert result.last.cached_tokens >= 64  # pages before the question are anybody's


@pytest.mark.parametrize("padded", [False, True])
def test_pages_under_other_weights_are_not_found(padded: bool, make_core: MakeCore) -> None:
    """All rows are edited; the answers are each one's own, whoever was there before and beside."""
    core = make_core("llava", padded_decode=padded)
    prompt = tiny.prompt("llava", images=2, seed=3, text=150)
    maps = [[6, 0.2, 2], [6, 0.2, 2.5], [1, 1, 9]]
    requests, wanted = {}, {}
    for name, columns in zip("abc", maps, strict=True):
        entry = {**DRAWN, "regions": [{"image": 1, "weights": [columns]}], "layers": [0, 1, 2, 3]}
        methods = REGISTRY.parse([{**entry, "rows": "prompt+generated"}])
        requests[name] = ask(prompt, methods, name, STEPS, logprobs=1)
        edit = multiplied(dict.fromkeys(range(4), factors_of(prompt, columns, {})), 0)
        wanted[name] = Oracle(tiny.build("llava"), edit).run(prompt, STEPS)
    for name, request in requests.items():
        result = run(core, [request])[name]
        assert result.last.cached_tokens == 0
        check(result, wanted[name][: len(result.tokens)])
    for name, result in run(core, list(requests.values())).items():
        assert result.last.cached_tokens >= 128  # its own
        check(result, wanted[name][: len(result.tokens)])


def test_values_of_keys_behind_the_prompt_are_refused(make_core: MakeCore) -> None:
    core = make_core("llava")
    prompt = tiny.prompt("llava", images=2, seed=3, text=20)
    request = ask(prompt, REGISTRY.parse([DRAWN]), "r", STEPS)
    assert why_refused(request, core.info) is None
    longer = KeyWeights.pack(np.ones(len(prompt.tokens) + 1, np.float32))
    plan = dataclasses.replace(request.plan, key_weights=(longer,))
    assert "beyond the prompt" in (why_refused(replace(request, plan=plan), core.info) or "")


def test_a_row_that_weighs_keys_is_nobodys_afterwards(make_core: MakeCore) -> None:
    """One seat: the next request has the same rows of the tables, other values in the same slot."""
    core = make_core("llava", max_num_seqs=1)
    prompt = tiny.prompt("llava", images=2, seed=3, text=20)
    words = {"tokens": [2, 4], "weights": [3, 0.5]}
    later = REGISTRY.parse([{"method": "look_at", "regions": [words]}])
    fresh = run(make_core("llava"), [ask(prompt, later, "r", STEPS, logprobs=1)])["r"]
    run(core, [ask(prompt, REGISTRY.parse([DRAWN]), "r", STEPS)])
    result = run(core, [ask(prompt, later, "r", STEPS, logprobs=1)])["r"]
    assert [entry.logprob for entry in result.logprobs] == [e.logprob for e in fresh.logprobs]


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
