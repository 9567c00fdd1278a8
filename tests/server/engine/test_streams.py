"""Edits of residuals and of head outputs through the engine equal hooks on transformers' own model.

The oracle recomputes the whole sequence for every token, in float64 with eager attention, and does
literally what a method's paper says; the engine chunks, caches, batches and reads float32 tables.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from saccade_interventions.artifacts import Artifact, read_artifact, write_artifact
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, ModelFacts, Prompt
from saccade_interventions.phases import parse_rows
from saccade_interventions.registry import Registry
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import FinishReason
from saccade_server.models.compile import compilations, compile_decoder, warm

STEPS = 6
LAYERS, HEADS, DIM, HIDDEN = 4, 4, 16, 64
MODEL = "sha256:" + "a" * 64
RNG = np.random.default_rng(3)
Rows = torch.Tensor  # float [T, 1]: 1 for rows that are edited


def random_vectors(count: int, size: int) -> torch.Tensor:
    """As an artifact stores them."""
    return torch.from_numpy(RNG.normal(size=(count, size)).astype(np.float32)).double()


RESIDUALS = (0, 2, 4)
VECTORS = random_vectors(3, HIDDEN)
PAIRS = ((2, 3), (1, 0), (2, 1))
HEAD_VECTORS = random_vectors(3, DIM)
SIGMA = torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64)
MEANS = random_vectors(LAYERS * HEADS, DIM).reshape(LAYERS, HEADS, DIM)


def made(kind: str, **tensors: Any) -> Artifact:
    arrays = {name: np.asarray(values) for name, values in tensors.items()}
    return read_artifact(write_artifact(kind, MODEL, arrays))


STEER = made("vectors", vectors=VECTORS, layers=RESIDUALS)
TASK = made("vectors", vectors=VECTORS[:1], layers=(3,))
TRUTH = made("head_vectors", heads=PAIRS, vectors=HEAD_VECTORS, sigma=SIGMA)
LISTED = made("heads", heads=PAIRS)
AVERAGE = made("head_means", means=MEANS)
STORE = {artifact.digest: artifact for artifact in (STEER, TASK, TRUTH, LISTED, AVERAGE)}


def plan_for(core: EngineCore, prompt: Any, entries: list[dict[str, Any]]) -> Any:
    info = core.info
    facts = ModelFacts(
        layers=info.layers,
        heads=info.heads,
        kv_heads=info.kv_heads,
        head_dim=info.head_dim,
        hidden_size=info.hidden_size,
        sink_dims=(3, 11),
        fingerprint=MODEL,
    )
    spans = tuple((image.start, image.start + image.length) for image in prompt.images)
    context = Context(facts, Prompt(length=len(prompt.tokens), images=spans), STORE.get)
    return compile_plan(Registry.discover().parse(entries), context)


Hidden = Callable[[int, torch.Tensor, Rows], torch.Tensor]
"""(residual, h [T, D], rows) -> h'; or (layer, z [T, heads, dim], rows) -> z'."""


@dataclass
class Oracle:
    """Greedy generation by full recomputation with residuals and head outputs changed."""

    model: Any
    rows: str
    residual: Hidden | None = None
    heads: Hidden | None = None
    length: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        self.model.set_attn_implementation("eager")
        decoder = self.model.get_decoder()
        for index, layer in enumerate(decoder.layers):
            layer.register_forward_pre_hook(self._before(index), with_kwargs=True)
            layer.self_attn.o_proj.register_forward_pre_hook(self._heads(index))
        decoder.layers[-1].register_forward_hook(self._behind)

    def _edited(self, positions: int) -> Rows:
        """Which rows of the sequence so far the named rows are."""
        at = torch.arange(positions)
        named = {
            "prompt": at < self.length,
            "question": (at >= self.start) & (at < self.length),
            "last": at == self.length - 1,
            "generated": at >= self.length,
        }
        chosen = torch.stack([named[name] for name in self.rows.split("+")]).any(0)
        return chosen.double()[:, None]

    def _before(self, index: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            if self.residual is None:
                return None
            assert args
            changed = self.residual(index, args[0][0], self._edited(args[0].shape[1]))
            return (changed[None], *args[1:]), kwargs

        return hook

    def _behind(self, module: Any, args: Any, output: torch.Tensor) -> Any:
        if self.residual is None:
            return None
        return self.residual(LAYERS, output[0], self._edited(output.shape[1]))[None]

    def _heads(self, index: int) -> Any:
        def hook(module: Any, args: Any) -> Any:
            if self.heads is None:
                return None
            z = args[0][0].reshape(-1, HEADS, DIM)
            return (self.heads(index, z, self._edited(len(z))).reshape(args[0].shape),)

        return hook

    @torch.no_grad()
    def run(self, prompt: Any, steps: int = STEPS) -> list[tuple[int, float]]:
        """(token, log-probability) of each greedy step."""
        self.length = len(prompt.tokens)
        self.start = max((image.start + image.length for image in prompt.images), default=0)
        tokens, found = list(prompt.tokens), []
        for _ in range(steps):
            ids = torch.tensor([tokens])
            inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
            if prompt.images:
                grids = [image.grid for image in prompt.images]
                parts = [torch.from_numpy(image.pixels).double() for image in prompt.images]
                inputs["pixel_values"] = (
                    torch.stack(parts) if grids[0] is None else torch.cat(parts)
                )
                if grids[0] is not None:
                    inputs["image_grid_thw"] = torch.tensor(grids)
                    inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
            logprobs = self.model(**inputs).logits[0, -1].log_softmax(-1)
            token = int(logprobs.argmax())
            found.append((token, float(logprobs[token])))
            tokens.append(token)
        return found


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


def at_residuals(edit: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Hidden:
    """``edit(h [T, D], stored vector)`` at the artifact's residuals, in the rows named."""

    def residual(index: int, h: torch.Tensor, rows: Rows) -> torch.Tensor:
        if index not in RESIDUALS:
            return h
        return h + rows * (edit(h, VECTORS[RESIDUALS.index(index)]) - h)

    return residual


def keeping_norm(edit: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def kept(h: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        changed = edit(h, v)
        return changed * h.norm(dim=-1, keepdim=True) / changed.norm(dim=-1, keepdim=True)

    return kept


def along(h: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (h @ unit(v))[:, None]


def rms(h: torch.Tensor) -> torch.Tensor:
    return h.square().mean(-1, keepdim=True).sqrt()


STEERING: dict[str, tuple[dict[str, Any], Callable[..., torch.Tensor]]] = {
    "add": ({"coefficient": 0.3}, lambda h, v: h + 0.3 * v),
    "add unit": ({"coefficient": -2, "unit": "unit"}, lambda h, v: h - 2 * unit(v)),
    "add rms": ({"coefficient": 8, "unit": "rms"}, lambda h, v: h + 8 * rms(h) * unit(v)),
    "add, same norm": (
        {"coefficient": 0.5, "keep_norm": True},
        keeping_norm(lambda h, v: h + 0.5 * v),
    ),
    "piecewise": (
        {"op": "piecewise", "coefficient": 0.4},
        lambda h, v: h + 0.4 * v * along(h, v).sign(),
    ),
    "project out": ({"op": "project_out"}, lambda h, v: h - (h @ v)[:, None] * v / (v @ v)),
    "half out, same norm": (
        {"op": "project_out", "coefficient": 0.5, "keep_norm": True},
        keeping_norm(lambda h, v: h - 0.5 * (h @ v)[:, None] * v / (v @ v)),
    ),
    "clamp": (
        {"op": "clamp", "low": -0.2, "high": 0.5},
        lambda h, v: h + (along(h, v).clamp(-0.2, 0.5) - along(h, v)) * unit(v),
    ),
    "cap": (
        {"op": "clamp", "high": -0.5},
        lambda h, v: h + (along(h, v).clamp(max=-0.5) - along(h, v)) * unit(v),
    ),
}


def check(result: Any, wanted: list[tuple[int, float]], atol: float = 5e-6) -> None:
    assert result.last.error is None
    assert result.tokens == [token for token, _ in wanted][: len(result.tokens)]
    found = np.array([entry.logprob for entry in result.logprobs])
    np.testing.assert_allclose(found, [value for _, value in wanted][: len(found)], atol=atol)


def steering(name: str, rows: str) -> dict[str, Any]:
    return {"method": "steering", "artifact": STEER.digest, "rows": rows, **STEERING[name][0]}


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
def test_steering(
    family: str, name: str, rows: str, tiny: Any, make_core: Any, make_request: Any, run: Any
) -> None:
    """Prompts in chunks and whole; then again, from a cached prefix where there is one."""
    prompt = tiny.prompt(family, images=int(family in tiny.IMAGE_FAMILIES), seed=1, text=70)
    wanted = Oracle(tiny.build(family), rows, residual=at_residuals(STEERING[name][1])).run(prompt)
    plain = Oracle(tiny.build(family), rows).run(prompt)
    assert wanted[-1] != plain[-1], "the case must exercise the edit"
    for budget in (512, 16):
        core = make_core(family, max_batched_tokens=budget)
        plan = plan_for(core, prompt, [steering(name, rows)])
        for turn in ("cold", "warm"):
            request = make_request(prompt, turn, plan, STEPS, logprobs=1, ignore_eos=True)
            result = run(core, [request])[turn]
            check(result, wanted)
        assert result.last.cached_tokens >= 64


def heads_oracle(
    model: Any, rows: str, edit: Callable[[torch.Tensor, int], torch.Tensor]
) -> Oracle:
    """``edit(z [T, dim], place in PAIRS)`` of the listed heads."""

    def heads(layer: int, z: torch.Tensor, rows: Rows) -> torch.Tensor:
        z = z.clone()
        for place, (at, head) in enumerate(PAIRS):
            if at == layer:
                z[:, head] += rows * (edit(z[:, head], place) - z[:, head])
        return z

    return Oracle(model, rows, heads=heads)


HEAD_CASES: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor, int], torch.Tensor]]] = {
    "sigma": (
        {"method": "head_steering", "artifact": TRUTH.digest, "alpha": 1.5},
        lambda z, i: z + 1.5 * SIGMA[i] * unit(HEAD_VECTORS[i]),
    ),
    "unit": (
        {"method": "head_steering", "artifact": TRUTH.digest, "alpha": -2, "unit": "unit"},
        lambda z, i: z - 2 * unit(HEAD_VECTORS[i]),
    ),
    "raw": (
        {"method": "head_steering", "artifact": TRUTH.digest, "alpha": 0.3, "unit": "raw"},
        lambda z, i: z + 0.3 * HEAD_VECTORS[i],
    ),
    "scale": (
        {"method": "head_scale", "gain": -1.5, "artifact": LISTED.digest},
        lambda z, i: -1.5 * z,
    ),
    "scale, listed": (
        {"method": "head_scale", "gain": 3, "heads": {"1": [0], "2": [3, 1]}},
        lambda z, i: 3 * z,
    ),
    "zero": ({"method": "head_ablation", "artifact": LISTED.digest}, lambda z, i: 0 * z),
    "mean": (
        {
            "method": "head_ablation",
            "mode": "mean",
            "means": AVERAGE.digest,
            "heads": {"1": [0], "2": [3, 1]},
        },
        lambda z, i: 0 * z + MEANS[PAIRS[i]],
    ),
}


@pytest.mark.parametrize("family", ["llama", "qwen3", "llava", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("names", [("sigma", "scale"), ("raw", "zero"), ("unit", "mean")])
def test_heads(
    family: str, names: tuple[str, ...], tiny: Any, make_core: Any, make_request: Any, run: Any
) -> None:
    rows = {"sigma": "last+generated", "scale": "prompt+generated"}.get(names[0], "prompt")
    prompt = tiny.prompt(family, images=int(family in tiny.IMAGE_FAMILIES), seed=2, text=30)
    core = make_core(family, max_batched_tokens=24)
    for name in names:
        entry, edit = HEAD_CASES[name]
        wanted = heads_oracle(tiny.build(family), rows, edit).run(prompt, 4)
        plan = plan_for(core, prompt, [{**entry, "rows": rows}])
        request = make_request(prompt, name, plan, 4, logprobs=1, ignore_eos=True)
        check(run(core, [request])[name], wanted)


def test_heads_by_layer_are_the_artifacts(tiny: Any, make_core: Any) -> None:
    core, prompt = make_core("llama"), tiny.prompt("llama")
    listed = plan_for(core, prompt, [HEAD_CASES["scale, listed"][0]])
    named = {**HEAD_CASES["scale"][0], "gain": 3}
    assert plan_for(core, prompt, [named]).fingerprint() == listed.fingerprint()


def test_uniform_ablation(tiny: Any, make_core: Any, make_request: Any, run: Any) -> None:
    """The mean of the values that the row sees: the values are written out from the layer."""
    prompt = tiny.prompt("llama", seed=2, text=30)
    model = tiny.build("llama")
    values: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(model.get_decoder().layers):
        keep = lambda module, args, output, index=index: values.update({index: output[0]})
        layer.self_attn.v_proj.register_forward_hook(keep)

    def heads(layer: int, z: torch.Tensor, rows: Rows) -> torch.Tensor:
        z = z.clone()
        for at, head in PAIRS:
            if at == layer:
                v = values[layer].reshape(len(z), 2, DIM)[:, head // 2]
                mean = v.cumsum(0) / torch.arange(1, len(z) + 1)[:, None]
                z[:, head] += rows * (mean - z[:, head])
        return z

    wanted = Oracle(model, "last+generated", heads=heads).run(prompt)
    core = make_core("llama", max_batched_tokens=16)
    entry = {"method": "head_ablation", "mode": "uniform", "artifact": LISTED.digest}
    plan = plan_for(core, prompt, [{**entry, "rows": "last+generated"}])
    request = make_request(prompt, "r", plan, STEPS, logprobs=1, ignore_eos=True)
    check(run(core, [request])["r"], wanted)


@pytest.mark.parametrize("layer", [None, 0, 3])
def test_function_vector(
    layer: int | None, tiny: Any, make_core: Any, make_request: Any, run: Any
) -> None:
    """Added at the output of a layer; the last layer's output has no layer behind it."""
    prompt = tiny.prompt("llava", images=1, seed=4)
    place = 3 if layer is None else layer + 1

    def residual(index: int, h: torch.Tensor, rows: Rows) -> torch.Tensor:
        return h + rows * VECTORS[0] if index == place else h

    wanted = Oracle(tiny.build("llava"), "last+generated", residual=residual).run(prompt)
    core = make_core("llava")
    entry = {"method": "function_vector", "artifact": TASK.digest, "layer": layer}
    plan = plan_for(core, prompt, [entry])
    request = make_request(prompt, "r", plan, STEPS, logprobs=1, ignore_eos=True)
    check(run(core, [request])["r"], wanted)


def test_chains_run_in_the_order_of_the_request(
    tiny: Any, make_core: Any, make_request: Any, run: Any
) -> None:
    """Three methods at the same residuals, and gains and shifts of the same heads."""
    prompt = tiny.prompt("qwen2_5_vl", images=1, seed=5)
    names = ("add", "clamp", "half out, same norm")
    rows = "prompt+generated"

    def chained(order: tuple[str, ...]) -> Hidden:
        def residual(index: int, h: torch.Tensor, where: Rows) -> torch.Tensor:
            for name in order:
                h = at_residuals(STEERING[name][1])(index, h, where)
            return h

        return residual

    def heads(layer: int, z: torch.Tensor, where: Rows) -> torch.Tensor:
        z = z.clone()
        for place, (at, head) in enumerate(PAIRS):
            if at == layer:
                changed = -1.5 * (z[:, head] + 0.3 * HEAD_VECTORS[place])
                z[:, head] += where * (changed - z[:, head])
        return z

    core = make_core("qwen2_5_vl", max_batched_tokens=20)
    found = set()
    for number, order in enumerate((names, names[::-1])):
        entries = [steering(name, rows) for name in order]
        entries += [{**HEAD_CASES[name][0], "rows": rows} for name in ("raw", "scale")]
        plan = plan_for(core, prompt, entries)
        oracle = Oracle(tiny.build("qwen2_5_vl"), rows, residual=chained(order), heads=heads)
        request = make_request(prompt, str(number), plan, STEPS, logprobs=1, ignore_eos=True)
        result = run(core, [request])[str(number)]
        check(result, oracle.run(prompt))
        found.add(result.logprobs[0].logprob)
    assert len(found) == 2, "the order must matter"


def crowd(core: EngineCore, tiny: Any, make_request: Any) -> list[Any]:
    """Plain and steered requests over shared prefixes; some pages fill while decoding."""
    made = []
    for text in (70, 40):  # a full page to share; a page outgrown while decoding
        prompt = tiny.prompt("llava", images=1, seed=text, text=text)
        kinds: dict[str, list[dict[str, Any]]] = {
            "plain": [],
            "prompt": [steering("add", "prompt+generated")],
            "generated": [steering("add", "generated")],
            "stronger": [{**steering("add", "prompt+generated"), "coefficient": 0.6}],
            "clamp": [steering("clamp", "question+generated")],
            "heads": [{**HEAD_CASES["sigma"][0]}],
            "with pai": [steering("add rms", "last+generated"), {"method": "pai", "alpha": 0.8}],
        }
        for kind, entries in kinds.items():
            plan = plan_for(core, prompt, entries) if entries else None
            name = f"{text} {kind}"
            made.append(make_request(prompt, name, plan, 9, ignore_eos=True, logprobs=1))
    return made


def told(results: dict[str, Any]) -> dict[str, list[int]]:
    return {name: result.tokens for name, result in results.items()}


@pytest.mark.parametrize("config", [{}, {"max_batched_tokens": 20}, {"cache_tokens": 64 * 7}])
def test_neighbours_caches_and_preemption_change_nothing(
    config: dict[str, int], tiny: Any, make_core: Any, make_request: Any, run: Any
) -> None:
    core = make_core("llava", **config)
    requests = crowd(core, tiny, make_request)
    wanted = {}
    for request in requests:
        wanted |= told(run(make_core("llava", prefix_caching=False), [request]))
    assert len({tuple(tokens) for tokens in wanted.values()}) > 8, "the plans must matter"
    for _ in range(2):  # the second time everything that may be shared is cached
        assert told(run(core, requests)) == wanted
    if "cache_tokens" in config:
        assert core.stats().preemptions > 0
    streams = core._runner.tables.streams
    assert core.stats().cache_usage == 0
    assert not core._scheduler.rows._vectors._slot_of
    assert not streams.count[0].any()


def test_a_steered_neighbour_changes_no_bit(
    tiny: Any, make_core: Any, make_request: Any, run: Any
) -> None:
    """Log-probabilities of a plain request beside a steered one are those beside a plain one."""
    prompt = tiny.prompt("llava", images=1, seed=0, text=70)
    found = []
    for entries in ([], [steering("add rms", "prompt+generated")]):
        core = make_core("llava", prefix_caching=False)
        plan = plan_for(core, prompt, entries) if entries else None
        requests = [
            make_request(prompt, "plain", None, 6, logprobs=5, ignore_eos=True),
            make_request(prompt, "other", plan, 6, ignore_eos=True),
        ]
        found.append(run(core, requests)["plain"].logprobs)
    assert found[0] == found[1]


def test_pages_are_shared_up_to_the_first_steered_row(
    tiny: Any, make_core: Any, make_request: Any, run: Any
) -> None:
    prompt = tiny.prompt("llama", seed=0, text=140)
    core = make_core("llama")

    def cached(name: str, entries: list[dict[str, Any]]) -> int:
        plan = plan_for(core, prompt, entries) if entries else None
        return int(run(core, [make_request(prompt, name, plan, 2)])[name].last.cached_tokens)

    assert cached("plain", []) == 0
    assert cached("generated only", [steering("add", "last+generated")]) == 128
    assert cached("prompt", [steering("add", "prompt+generated")]) == 0
    assert cached("again", [steering("add", "prompt+generated")]) == 128
    stronger = {**steering("add", "prompt+generated"), "coefficient": 0.31}
    assert cached("stronger", [stronger]) == 0
    assert cached("fewer", [{**steering("add", "prompt+generated"), "layers": [2]}]) == 0


def test_a_request_waits_for_vectors_and_never_runs_without(
    tiny: Any, make_core: Any, make_request: Any, run: Any
) -> None:
    """Slots for one artifact: requests with another one wait, plain ones pass."""
    prompt = tiny.prompt("llama", seed=0)
    core = make_core("llama")
    core._scheduler.rows._vectors._free.clear()
    core._scheduler.rows._vectors._free.extend([1, 2, 3])
    other = made("vectors", vectors=8 * VECTORS.flip(0), layers=RESIDUALS)
    STORE[other.digest] = other
    entries = {
        "first": steering("add", "prompt+generated"),
        "same vectors": steering("add", "generated"),
        "other vectors": {**steering("add", "prompt+generated"), "artifact": other.digest},
    }
    plans = {name: plan_for(core, prompt, [entry]) for name, entry in entries.items()}
    requests = [
        make_request(prompt, name, plan, 5, ignore_eos=True)
        for name, plan in {**plans, "plain": None}.items()
    ]
    results = run(core, requests)
    wanted = {}
    for request in requests:
        wanted |= told(run(make_core("llama"), [request]))
    assert told(results) == wanted
    assert wanted["first"] != wanted["other vectors"]


def test_steering_beside_attention_edits(
    tiny: Any, make_core: Any, make_request: Any, run: Any
) -> None:
    """VAR finds its sinks in steered residuals: the probe comes after the edit."""
    prompt = tiny.prompt("llava", images=1, seed=1, text=60)
    var = {"method": "var", "tau": 1.0, "min_visual_mass": 0.02, "rho": 0.3, "move_fraction": 0.6}
    seen: dict[int, torch.Tensor] = {}

    def residual(index: int, h: torch.Tensor, where: Rows) -> torch.Tensor:
        seen[index] = at_residuals(STEERING["add"][1])(index, h, where)
        return seen[index]

    core = make_core("llava", max_batched_tokens=16)
    entries = [var, {"method": "pai", "alpha": 0.4}, steering("add", "prompt+generated")]
    plan = plan_for(core, prompt, entries)
    request = make_request(prompt, "r", plan, 1, logprobs=1)
    sequence_tags: list[torch.Tensor] = []
    finish = core._finish

    def keep(sequence: Any, *rest: Any, **news: Any) -> Any:
        sequence_tags.append(core._runner.tables.tags.tags[sequence.tag_row, 2].clone())
        return finish(sequence, *rest, **news)

    core._finish = keep
    run(core, [request])
    oracle = Oracle(tiny.build("llava"), "prompt+generated", residual=residual)
    oracle.run(prompt, 1)
    x = seen[2]  # what PAI and VAR change in layers 0 and 1 is nothing: both begin at layer 2
    phi = x[:, [3, 11]].abs().amax(-1) / (x.square().mean(-1) + 1e-6).sqrt()
    sinks = phi >= 1.0
    assert 0 < int(sinks.sum()) < len(sinks)
    remap = dict(plan.sinks.remap)
    base = torch.from_numpy(plan.base_tags().copy())
    expected = torch.tensor(
        [
            remap.get(int(tag), int(tag)) if sink else int(tag)
            for tag, sink in zip(base, sinks, strict=True)
        ]
    )
    assert torch.equal(sequence_tags[0][: len(expected)].long(), expected)


def test_only_steps_with_steered_rows_edit_residuals(
    tiny: Any, core_with: Any, make_request: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny.prompt("llama", seed=0)
    core = core_with("llama", padded_decode=True, overlap=False)
    plan = plan_for(core, prompt, [{**steering("add", "generated"), "layers": [2]}])
    seen: list[Any] = []
    forward = core._runner.model.forward

    def note(embeddings: Any, positions: Any, step: Any, *rest: Any) -> Any:
        seen.append(step.streams and sorted(step.streams.layers))
        return forward(embeddings, positions, step, *rest)

    monkeypatch.setattr(core._runner.model, "forward", note)
    run(core, [make_request(prompt, "steered", plan, 3, ignore_eos=True)])
    run(core, [make_request(prompt, "plain", None, 3, ignore_eos=True)])
    every = list(range(LAYERS + 1))
    assert seen == [None, every, every, None, None, None]
    monkeypatch.setattr(core._runner, "_decoder", None)
    run(core, [make_request(prompt, "ordinary", plan, 3, ignore_eos=True)])
    assert seen[6:] == [None, [2], [2]]


def test_compiled_layers_take_edited_residuals(
    tiny: Any, core_with: Any, make_request: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Hooks stay outside of what is compiled, and no step comes in another form for them."""
    prompt = tiny.prompt("qwen3", seed=0)
    found = []
    for compiled in (False, True):
        core = core_with("qwen3", max_batched_tokens=16)
        if compiled:
            compile_decoder(core._runner.model, lambda graph, inputs: graph.forward)
            warm(core._runner.model)
            assert compilations(core._runner.model)
        plan = plan_for(core, prompt, [steering("add", "prompt+generated")])
        request = make_request(prompt, "r", plan, 4, logprobs=1, ignore_eos=True)
        found.append(run(core, [request])["r"])
    assert found[0].tokens == found[1].tokens
    assert "was not compiled" not in caplog.text


def test_what_the_engine_refuses(tiny: Any, make_core: Any, make_request: Any, run: Any) -> None:
    core, prompt = make_core("llama"), tiny.prompt("llama")
    plan = plan_for(core, prompt, [steering("add", "generated")])
    short = replace(plan.vectors[0], size=32, data=plan.vectors[0].data[: 3 * 32 * 4])
    result = run(core, [make_request(prompt, "r", replace(plan, vectors=(short,)), 2)])["r"]
    assert result.last.finish_reason is FinishReason.ERROR
    assert "another model" in result.last.error


def test_rows_are_counted(tiny: Any, make_core: Any, make_request: Any, run: Any) -> None:
    core, prompt = make_core("llama"), tiny.prompt("llama")
    plan = plan_for(core, prompt, [steering("add", "last+generated")])
    result = run(core, [make_request(prompt, "r", plan, 4, ignore_eos=True)])["r"]
    rows = result.last.receipt.rows
    assert rows["last"] == 1
    assert rows["generated"] == 3
    assert set(parse_rows("last+generated")) <= set(rows)
