"""Attention in traces is what heads really used: transformers' weights, edits written out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from saccade_kernels.batch import PAGE
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.traces import blocks
from saccade_server.engine.traces.columns import names
from saccade_server.engine.traces.data import AttentionReading, SinkReading, Trace
from saccade_testing import oracle, tiny
from saccade_testing.engine import REGISTRY, Result, ask, core_with, make_request, run
from saccade_testing.formulas import act_rows, phi, var

TOKENS = 5
LAYERS, HEADS = (0, 1, 2, 3), (0, 1, 2, 3)
SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "chunks": {"max_batched_tokens": 16},
    "padded": {"padded_decode": True},
    "as on a GPU": {"padded_decode": True, "overlap": True, "max_batched_tokens": 40},
}
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


def reading(name: str = "attention", **fields: Any) -> AttentionReading:
    """All rows of an answer, layers and heads; every key its own column unless told otherwise."""
    whole: dict[str, Any] = {"rows": (0, 10_000), "layers": LAYERS, "heads": HEADS}
    if not {"keys", "recent", "sinks"} & set(fields):
        whole |= {"keys": (((0, 400),),), "each": True}
    return AttentionReading(name=name, **{**whole, **fields})


def traced(request: GenerateRequest, *readings: Any) -> GenerateRequest:
    return replace(request, trace=Trace(readings or (reading(),)))


@torch.no_grad()
def eager(family: str, prompt: Any, tokens: list[int]) -> np.ndarray[Any, Any]:
    """transformers' own weights of all rows, [rows, layers, heads, keys]."""
    model = tiny.build(family)
    model.set_attn_implementation("eager")
    ids = torch.tensor([[*prompt.tokens, *tokens[:-1]]])
    arguments = prompt.arguments(ids, model.dtype)
    given = model(input_ids=ids, use_cache=False, output_attentions=True, **arguments).attentions
    found: np.ndarray[Any, Any] = torch.cat(given).permute(2, 0, 1, 3).numpy()
    return found


@torch.no_grad()
def edited(
    family: str, prompt: Any, tokens: list[int], edit: oracle.Edit
) -> tuple[np.ndarray[Any, Any], dict[int, torch.Tensor]]:
    """The same of attention that is edited as written out; and what enters each layer."""
    model = tiny.build(family)
    residuals, seen = oracle.remember_residuals(model), {}

    def weigh(layer: int, scores: torch.Tensor) -> torch.Tensor:
        seen[layer] = edit(layer, scores, residuals)
        return seen[layer]

    oracle.attend(model, weigh)
    oracle.logits(model, prompt, [*prompt.tokens, *tokens[:-1]])
    weights = torch.stack([seen[layer] for layer in LAYERS]).permute(2, 0, 1, 3)
    return weights.numpy(), residuals


def same(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    """Equal up to rounding of tables in float32; keys that do not exist have no weight."""
    assert not found[..., wanted.shape[-1] :].any()
    np.testing.assert_allclose(found[..., : wanted.shape[-1]], wanted, atol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_weights_are_those_of_transformers(family: str, setting: str) -> None:
    prompt = tiny.prompt(family, text=20)
    core = core_with(family, **SETTINGS[setting])
    request = traced(make_request(prompt, max_tokens=TOKENS, ignore_eos=True))
    result = run(core, [request])["r"]
    same(result.trace["attention"], eager(family, prompt, result.tokens))


def pai(prompt: Any) -> oracle.Edit:
    def edit(layer: int, scores: torch.Tensor, _: Any) -> torch.Tensor:
        image = oracle.visual(prompt, scores.shape[2])
        rows = torch.arange(scores.shape[1]) >= len(prompt.tokens) - 1
        changed = rows[:, None] & image & torch.isfinite(scores)
        boosted = scores + 0.5 * scores.abs()
        return torch.where(changed, boosted, scores).softmax(-1)

    return edit


def pasta(prompt: Any) -> oracle.Edit:
    def edit(layer: int, scores: torch.Tensor, _: Any) -> torch.Tensor:
        weights = scores.softmax(-1)
        if layer in (1, 2):
            keys = torch.arange(scores.shape[2])
            outside = ((keys < 2) | (keys >= 7)) & (keys < len(prompt.tokens))
            for head in (0, 3):
                lowered = torch.where(outside, 0.01 * weights[head], weights[head])
                weights[head] = lowered / lowered.sum(-1, keepdim=True)
        return weights

    return edit


def vared(prompt: Any) -> oracle.Edit:
    def edit(layer: int, scores: torch.Tensor, residuals: Any) -> torch.Tensor:
        weights, length = scores.softmax(-1), len(prompt.tokens)
        if layer not in (1, 2):
            return weights
        first = max(i.start + i.length for i in prompt.images)
        image = oracle.visual(prompt, scores.shape[2])
        return var(weights, residuals[layer], image, length, first)[0]

    return edit


def acted(prompt: Any) -> oracle.Edit:
    sites = {1: [0, 3], 2: [1, 2, 3]}

    def edit(layer: int, scores: torch.Tensor, _: Any) -> torch.Tensor:
        weights = scores.softmax(-1)
        for head in sites.get(layer, ()):
            weights[head] = act_rows(weights[head], len(prompt.tokens))
        return weights

    return edit


FACTORIES: dict[str, tuple[dict[str, Any], Callable[[Any], oracle.Edit]]] = {
    "pai": ({"method": "pai", "alpha": 0.5, "layers": list(LAYERS), "rows": "last+generated"}, pai),
    "pasta": (
        {"method": "pasta", "alpha": 0.01, "heads": {"1": [0, 3], "2": [0, 3]}, "spans": [[2, 7]]},
        pasta,
    ),
    "var": (
        {
            "method": "var",
            "tau": 1.0,
            "sink_dims": [3, 11],
            "move_fraction": 0.6,
            "min_visual_mass": 0.02,
            "rho": 0.3,
            "layers": [1, 2],
        },
        vared,
    ),
    "act": (
        {"method": "act", "beta": 0.4, "theta": 0.1, "heads": {"1": [0, 3], "2": [1, 2, 3]}},
        acted,
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", FACTORIES)
def test_edits_of_methods_are_in_the_weights(method: str, setting: str) -> None:
    entry, edit_for = FACTORIES[method]
    prompt = tiny.prompt("llava", text=20)
    request = ask(prompt, REGISTRY.parse([entry]), max_tokens=TOKENS)
    options = {**SETTINGS[setting]}
    if method == "act":
        options.pop("max_batched_tokens", None)  # its prompt is one step
    result = run(core_with("llava", **options), [traced(request)])["r"]
    assert result.last is not None
    assert result.last.error is None
    wanted, _ = edited("llava", prompt, result.tokens, edit_for(prompt))
    same(result.trace["attention"], wanted)
    assert np.abs(wanted - eager("llava", prompt, result.tokens)).max() > 0.01


def whole(family: str, prompt: Any, tokens: list[int]) -> tuple[np.ndarray[Any, Any], Any]:
    """Plain weights, and which keys are sinks of each layer [layers, keys] at a threshold of 1."""
    weights, residuals = edited(family, prompt, tokens, lambda _, scores, __: scores.softmax(-1))
    sinks = torch.stack([phi(residuals[layer]) >= 1.0 for layer in LAYERS]).numpy()
    return weights, sinks


def groups_of(
    weights: np.ndarray[Any, Any], sinks: Any, wanted: AttentionReading
) -> np.ndarray[Any, Any]:
    """Shares of the columns of a reading, key by key, [rows, layers, heads, columns]."""
    rows, layers, _, keys = weights.shape
    key = np.arange(keys)
    is_sink = np.broadcast_to(sinks, (rows, layers, keys))
    is_recent = (np.arange(rows)[:, None] - key < wanted.recent)[:, None]
    left = np.ones((rows, layers, keys), bool)
    found = {}
    if wanted.sinks != "keep":
        found["sinks"], left = left & is_sink, left & ~is_sink
    found["recent"], left = left & is_recent, left & ~is_recent
    for number, spans in enumerate(wanted.keys):
        inside = np.any([(key >= start) & (key < end) for start, end in spans], axis=0)
        found[str(number)], left = left & inside, left & ~inside
    found["rest"] = left
    each = [np.einsum("rlhk,rlk->rlh", weights, found[name]) for name in names(wanted)]
    return np.stack(each, -1)


IMAGES = (((3, 9), (12, 14)), ((8, 18),))
READINGS = {
    "groups": reading(keys=IMAGES),
    "recent": reading(keys=IMAGES, recent=3),
    "sinks": reading(keys=IMAGES, recent=3, sinks="group", threshold=1.0),
    "without sinks": reading(keys=IMAGES, sinks="drop", threshold=1.0),
    "no keys": reading(keys=(), recent=1),
    "some layers and heads": reading(keys=IMAGES, layers=(1, 3), heads=(0, 2, 3)),
    "some rows": reading(keys=IMAGES, rows=(4, 21), recent=2),
    "mean heads": reading(keys=IMAGES, heads=(1, 2), over=frozenset({"head"})),
    "mean layers": reading(keys=IMAGES, layers=(0, 2), over=frozenset({"layer"})),
    "sums": reading(keys=IMAGES, over=frozenset({"row"}), rows=(2, 27)),
    "all": reading(keys=IMAGES, over=frozenset({"row", "layer", "head"}), layers=(2, 3)),
    "map": reading(keys=(((3, 9),), ((11, 15),)), each=True),
    "map without sinks": reading(keys=(((0, 9),),), each=True, sinks="drop", threshold=1.0),
    "columns": reading(keys=(((0, 60),),), each=True, over=frozenset({"row", "head"})),
}


def reduced(weights: np.ndarray[Any, Any], sinks: Any, wanted: AttentionReading) -> Any:
    if wanted.each:
        if wanted.sinks == "drop":
            weights = weights * ~sinks[None, :, None, :]
        keys = [k for group in wanted.keys for span in group for k in range(*span)]
        padded = np.pad(weights, ((0, 0),) * 3 + ((0, 400),))
        found = padded[..., keys]
    else:
        found = groups_of(weights, sinks, wanted)
    start, end = wanted.rows
    found = found[start:end][:, list(wanted.layers)][:, :, list(wanted.heads)]
    if "head" in wanted.over:
        found = found.mean(2, keepdims=True)
    if "layer" in wanted.over:
        found = found.mean(1, keepdims=True)
    if "row" in wanted.over:
        found = found.sum(0, keepdims=True)
    gone = [n for n, axis in enumerate(("row", "layer", "head")) if axis in wanted.over]
    return found.squeeze(tuple(gone))


def named() -> tuple[Any, ...]:
    return tuple(replace(one, name=name) for name, one in READINGS.items())


def check_all(result: Result, prompt: Any, family: str = "llava") -> None:
    weights, sinks = whole(family, prompt, result.tokens)
    assert 0 < sinks.sum() < sinks.size
    for name, wanted in READINGS.items():
        expected = reduced(weights, sinks, wanted)
        assert result.trace[name].shape == expected.shape, name
        np.testing.assert_allclose(result.trace[name], expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("setting", SETTINGS)
def test_groups_reductions_and_sinks(setting: str) -> None:
    """All at once, in one request, whose prompt was cached by others before: a page of it."""
    prompt = tiny.prompt("llava", text=20)
    core = core_with("llava", **SETTINGS[setting])
    request = make_request(prompt, max_tokens=TOKENS, ignore_eos=True)
    run(core, [request])
    check_all(run(core, [traced(request, *named())])["r"], prompt)


def test_blocks_are_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt is worked through in blocks of rows, and gives the same."""
    prompt = tiny.prompt("llava", text=20)
    monkeypatch.setattr(blocks, "ROOM", 7 * 4 * 8 * len(prompt.tokens))
    sizes: list[int] = []
    inner = blocks._block
    monkeypatch.setattr(
        blocks,
        "_block",
        lambda *given: (sizes.append(sum(s.end - s.start for s in given[2])), inner(*given))[1],
    )
    request = make_request(prompt, max_tokens=TOKENS, ignore_eos=True)
    check_all(run(core_with("llava"), [traced(request, *named())])["r"], prompt)
    assert max(sizes) < 16


@pytest.mark.parametrize("setting", SETTINGS)
def test_traces_in_a_crowd(setting: str) -> None:
    """Each has its own: rows of several sequences share a block, and none takes another's.

    With a bias logits change behind a padded step, where no stage draws. transformers would take
    a token of an image in an answer for an image.
    """
    prompts = [tiny.prompt("llava", seed=seed, text=12 + seed) for seed in range(4)]
    bias = {tiny.IMAGE_TOKEN: -100.0}
    options: dict[str, Any] = {"max_tokens": TOKENS, "ignore_eos": True, "logit_bias": bias}
    requests = [traced(make_request(p, str(n), **options), *named()) for n, p in enumerate(prompts)]
    results = run(core_with("llava", **SETTINGS[setting]), requests)
    for n, prompt in enumerate(prompts):
        check_all(results[str(n)], prompt)


@pytest.mark.parametrize("setting", ["as it comes", "as on a GPU"])
def test_rows_that_preemption_computes_again_count_once(setting: str) -> None:
    """Sums too. The cache holds the prompts, and no page more."""
    short = len(tiny.prompt("llava", text=0).tokens)
    prompts = [tiny.prompt("llava", seed=n, text=-(short + 2) % PAGE) for n in range(3)]
    options = {**SETTINGS[setting], "max_batched_tokens": 256}
    core = core_with("llava", cache_tokens=PAGE * 3 * -(-len(prompts[0].tokens) // PAGE), **options)
    requests = [
        traced(make_request(p, str(n), max_tokens=TOKENS, ignore_eos=True), *named())
        for n, p in enumerate(prompts)
    ]
    results = run(core, requests)
    assert core.stats().preemptions
    for n, prompt in enumerate(prompts):
        check_all(results[str(n)], prompt)


@pytest.mark.parametrize("setting", SETTINGS)
def test_sink_scores_come_with_cached_pages(setting: str) -> None:
    """Of all rows, by layer: those of a prefix that others computed, if these scored it."""
    prompt = tiny.prompt("llava", text=90)
    core = core_with("llava", **SETTINGS[setting])
    scores = SinkReading(name="scores", rows=(0, 10_000), layers=(1, 2, 3))
    request = make_request(prompt, max_tokens=TOKENS, ignore_eos=True)
    plain = run(core, [request])["r"]
    _, residuals = edited("llava", prompt, plain.tokens, lambda _, scores, __: scores.softmax(-1))
    wanted = torch.stack([phi(residuals[layer]) for layer in (1, 2, 3)], 1).numpy()
    for cached in (0, PAGE):  # plain pages have no scores
        result = run(core, [traced(request, scores)])["r"]
        assert result.last is not None
        assert result.last.cached_tokens == cached
        np.testing.assert_allclose(result.trace["scores"], wanted, rtol=1e-4)
    again = run(core, [request])["r"]
    assert again.last is not None
    assert again.last.cached_tokens == PAGE


@pytest.mark.parametrize("setting", ["padded", "as on a GPU"])
def test_a_last_prompt_row_alone_is_read_behind_a_padded_step(setting: str) -> None:
    """The rest of its prompt is cached."""
    short = len(tiny.prompt("llava", text=0).tokens)
    prompt = tiny.prompt("llava", text=(1 - short) % PAGE)
    core = core_with("llava", **SETTINGS[setting])
    request = make_request(prompt, max_tokens=TOKENS, ignore_eos=True)
    last = len(prompt.tokens) - 1
    wanted = tuple(replace(one, rows=(last, 10_000)) for one in named() if one.rows == (0, 10_000))
    run(core, [traced(request, *wanted)])
    ordinary: list[int] = []
    inner = core._runner._ordinary
    core._runner._ordinary = lambda chunks, fill: (ordinary.append(1), inner(chunks, fill))[1]
    result = run(core, [traced(request, *wanted)])["r"]
    assert not ordinary
    assert result.last is not None
    assert result.last.cached_tokens == last
    weights, sinks = whole("llava", prompt, result.tokens)
    for one in wanted:
        expected = reduced(weights, sinks, one)
        np.testing.assert_allclose(result.trace[one.name], expected, atol=1e-6, err_msg=one.name)
