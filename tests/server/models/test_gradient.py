"""The saliency of one cached row equals that of the whole sequence's gradient, in float64."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AttentionInterface

from saccade_kernels import gradients, ops
from saccade_kernels.residual import ResidualFlag, ResidualProgram, SiteKind, site_of
from saccade_kernels.residual_tables import ResidualTables
from saccade_server.models.family import serve
from saccade_server.models.gradient import Judged, Region, Rows, judge, maps, share
from saccade_server.models.residual import ResidualStep
from saccade_server.models.scratch import ScratchCache
from saccade_server.models.tape import RowsTape, wanted_of
from saccade_testing import tiny
from saccade_testing.tables import write_row

LAYERS = (1, 2)
CANDIDATES = [[11, 40, 3], [11, 60, 95]]
GENERATED = ((30, 31, 32, 33), (50, 51))
GOLDEN = Path(__file__).parents[2] / "interventions" / "golden" / "sgrs_saliency_arrays.npz"


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


def literal_share(saliency: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """sgrs.md, section 2, of one row [heads, keys]."""
    row = saliency.mean(0)
    return (row / row.norm())[start:end].mean()


class Eager:
    """Dense attention in the dtype of the model; transformers' own takes its softmax in float32."""

    def __init__(self, model: Any) -> None:
        self.weights: list[torch.Tensor] = []
        AttentionInterface.register("keeps-weights", self.attend)
        text_only = not hasattr(model.config, "vision_config")
        kind: Any = "keeps-weights" if text_only else {"text_config": "keeps-weights"}
        model.set_attn_implementation(kind)

    def attend(
        self, module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **kw: Any
    ) -> tuple[torch.Tensor, None]:
        group = q.shape[1] // k.shape[1]
        k, v = (part[0].repeat_interleave(group, 0) for part in (k, v))
        scores = q[0] @ k.transpose(1, 2) * kw["scaling"]
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
        if kw.get("sliding_window"):
            seen = seen.triu(1 - kw["sliding_window"])
        self.weights.append(scores.masked_fill(~seen, float("-inf")).softmax(-1))
        return (self.weights[-1] @ v).transpose(0, 1)[None], None


def by_autograd(model: Any, prompt: Any, generated: tuple[int, ...], tokens: list[int]) -> Any:
    """|A dL/dA| of the last row, [layer][candidate] of [heads, keys], by plain autograd."""
    ids = torch.tensor([[*prompt.tokens, *generated]])
    inputs = {"input_ids": ids, **prompt.arguments(ids)}
    eager = Eager(model)
    logprobs = model(**inputs, use_cache=False).logits[0, -1].log_softmax(-1)
    found = []
    for token in tokens:
        grads = torch.autograd.grad(-logprobs[token], eager.weights, retain_graph=True)
        pairs = zip(eager.weights, grads, strict=True)
        found.append([(a * g).abs()[:, -1].detach() for a, g in pairs])
    return [[found[c][layer] for c in range(len(tokens))] for layer in range(len(eager.weights))]


class Served:
    """A served model with some sequences in a cache, up to their last but one token."""

    def __init__(self, model: Any, prompts: list[Any]) -> None:
        self.model = serve(model)
        self.prompts = prompts
        self.cache = ScratchCache(self.model, len(prompts), 128)
        self.places = []
        for index, (prompt, generated) in enumerate(zip(prompts, GENERATED, strict=False)):
            tokens = [*prompt.tokens, *generated]
            embeddings = self.model.embed(torch.tensor(tokens)).clone()
            place = self.model.positions(prompt.tokens, prompt.spans)
            behind = torch.arange(len(prompt.tokens), len(tokens)) + place.delta
            positions = torch.cat([place.table, behind.expand(self.model.axes, -1)], dim=1)
            visual = torch.zeros(len(tokens), dtype=torch.bool)
            pixels = [(image.pixels, image.grid) for image in prompt.images]
            features = self.model.encode_images(pixels) if pixels else []
            for image, item in zip(prompt.images, features, strict=True):
                rows = slice(image.start, image.start + image.length)
                embeddings[rows], visual[rows] = item.features, True
            levels = [torch.cat(level) for level in zip(*(f.deepstack for f in features))]  # noqa: B905
            step = self.cache.step([(index, len(tokens) - 1)])
            arguments = (visual[:-1].nonzero()[:, 0], levels) if levels else ()
            self.model.forward(embeddings[:-1], positions[:, :-1], step, *arguments)
            self.places.append((embeddings[-1:], positions[:, -1:]))

    def last_step(self, first: int = LAYERS[0], **changes: Any) -> Rows:
        """Compute the last tokens together; returns their rows, with a tape.

        ``first``: layer that is kept; ``changes``: of the step.
        """
        count = len(self.places)
        embeddings = torch.cat([e for e, _ in self.places])
        positions = torch.cat([p for _, p in self.places], dim=1)
        order = torch.arange(count)
        tape = RowsTape(order, first, wanted_of(self.model.decoder.spec))
        step = replace(self.cache.step([(i, 1) for i in range(count)]), tape=tape)
        step = replace(step, **{name: change(step) for name, change in changes.items()})
        self.model.forward(embeddings, positions, step)
        return Rows(step, positions, tape, order)

    def generated(self) -> Region:
        """The keys behind the prompts."""
        lengths = [len(prompt.tokens) for prompt in self.prompts]
        counts = torch.zeros(len(lengths), self.model.layers, dtype=torch.bool)
        counts[:, LAYERS] = True
        ends = torch.tensor(self.cache.lengths[: len(lengths)])
        return Region(torch.tensor(lengths), ends, counts)


def test_one_row_equals_the_gradient_through_the_whole_sequence(family: str) -> None:
    """Two sequences at once, with grouped heads, windows, q/k norms and three position axes."""
    model = tiny.build(family)
    prompts = [tiny.prompt(family, images=2, seed=1), tiny.prompt(family, images=1, seed=2)]
    wanted = [
        by_autograd(copy.deepcopy(model), prompt, generated, tokens)
        for prompt, generated, tokens in zip(prompts, GENERATED, CANDIDATES, strict=True)
    ]
    with torch.inference_mode():
        served = Served(model, prompts)
        rows = served.last_step()
        before = [cache.clone() for cache in rows.step.key_caches]
        region = served.generated()
        found = judge(served.model, rows, region, LAYERS[0], torch.tensor(CANDIDATES))
    assert found.evidence.all()
    for index, sequence in enumerate(wanted):
        start, end = int(region.start[index]), int(region.end[index])
        for place in range(len(CANDIDATES[index])):
            parts = [literal_share(sequence[layer][place], start, end) for layer in LAYERS]
            # The spec's own comparison came to 4e-16.
            assert abs(found.saliency[index, place] - sum(parts) / len(parts)) < 1e-12
    assert len(set(found.saliency.flatten().tolist())) == found.saliency.numel()
    for cache, old in zip(rows.step.key_caches, before, strict=True):
        assert torch.equal(cache, old), "nothing may be written"


def test_maps_are_the_saliency_of_the_whole_sequence(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two tokens a row, in layers apart from each other, by head and key; 0 behind a context and
    before a window, whatever the kernel leaves there."""

    def poisoned(query: Any, grad: Any, keys: Any, values: Any, batch: Any, *rest: Any) -> Any:
        found = gradients.saliency(query, grad, keys, values, batch, *rest)
        window = rest[-1] or batch.max_context
        for saliency, context in zip(found.saliency, batch.context_lens.tolist(), strict=True):
            saliency[..., : max(context - window, 0)] = saliency[..., context:] = float("nan")
        return found

    monkeypatch.setattr(ops, "saliency", poisoned)
    model = tiny.build(family)
    prompts = [tiny.prompt(family, images=2, seed=1), tiny.prompt(family, images=1, seed=2)]
    tokens, layers = [[11, 40], [95, 3]], {0, 1, 3}
    wanted = [
        by_autograd(copy.deepcopy(model), prompt, generated, some)
        for prompt, generated, some in zip(prompts, GENERATED, tokens, strict=True)
    ]
    with torch.inference_mode():
        served = Served(model, prompts)
        rows = served.last_step(first=0)
        found = dict(maps(served.model, rows, layers, torch.tensor(tokens)))
    assert found.keys() == layers
    assert list(found) == [3, 1, 0]
    for layer, saliency in found.items():
        assert saliency.dtype == torch.float64
        for index, sequence in enumerate(wanted):
            wanted_row = torch.stack(sequence[layer])
            keys = wanted_row.shape[-1]
            found_row = saliency[index, ..., :keys]
            torch.testing.assert_close(found_row, wanted_row, rtol=0, atol=1e-12)
            assert not saliency[index, ..., keys:].any()
            assert wanted_row.amax((1, 2)).min() > 1e-6


def test_the_gradient_goes_through_edits_where_it_begins_and_ends() -> None:
    """The residual that is handed over is edited once, the last one before its norm, and what a
    layer adds on the way."""
    model, prompt = tiny.build("llama"), tiny.prompt("llama", seed=1)
    places = (LAYERS[0], model.config.num_hidden_layers)
    v = normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    tables = ResidualTables.allocate(2, places[1], 64)
    tables.bank[1] = v
    program = ResidualProgram.identity(places[1])
    sites = [site_of(SiteKind.RESIDUAL, place) for place in places]
    sites += [site_of(SiteKind.ATTENTION_OUTPUT, LAYERS[0]), site_of(SiteKind.MLP_OUTPUT, 2)]
    for site in sites:
        program.append(site, 1, (0.25, 3.0, -math.inf, math.inf), ResidualFlag.NONE)
    write_row(tables, 1, program)

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        last = hidden[:, -1:]
        change = (3.0 - 0.75 * (last @ v.double()))[..., None] * v.double()
        return torch.cat([hidden[:, :-1], last + change], 1)

    own = copy.deepcopy(model)
    layers = own.get_decoder().layers
    layers[places[0]].register_forward_pre_hook(lambda _, args: (edit(args[0]), *args[1:]))
    layers[-1].register_forward_hook(lambda _, args, output: edit(output))
    attention, mlp = layers[LAYERS[0]].self_attn, layers[2].mlp
    attention.register_forward_hook(lambda _, args, output: (edit(output[0]), *output[1:]))
    mlp.register_forward_hook(lambda _, args, output: edit(output))
    wanted = by_autograd(own, prompt, GENERATED[0], CANDIDATES[0])
    with torch.inference_mode():
        served = Served(model, [prompt])
        ones, edits = torch.ones(1, dtype=torch.int32), ResidualStep(tables, frozenset(sites))
        rows = served.last_step(
            batch=lambda step: replace(step.batch, control_rows=ones), residuals=lambda _: edits
        )
        region = served.generated()
        found = judge(served.model, rows, region, LAYERS[0], torch.tensor(CANDIDATES[:1]))
        seen = dict(maps(served.model, rows, LAYERS, torch.tensor(CANDIDATES[:1])))
    for layer in LAYERS:
        torch.testing.assert_close(seen[layer][0], torch.stack(wanted[layer]), rtol=0, atol=1e-6)
    span = int(region.start[0]), int(region.end[0])
    for place in range(len(CANDIDATES[0])):
        parts = [literal_share(wanted[layer][place], *span) for layer in LAYERS]
        assert abs(found.saliency[0, place] - sum(parts) / len(parts)) < 1e-6


def shares(saliency: torch.Tensor, start: int, end: int) -> Judged:
    """Of layers that all count, saliency [layers, n, K, heads, keys]."""
    layers, count = saliency.shape[:2]
    span = torch.tensor([start] * count), torch.tensor([end] * count)
    seen = torch.tensor([saliency.shape[-1]] * count), 0
    parts = torch.stack([ops.key_shares(layer, *seen, *span) for layer in saliency])
    return share(parts, *span, torch.ones(count, layers, dtype=torch.bool))


def test_the_worked_example() -> None:
    """sgrs.md, section 8."""
    weights = torch.tensor(
        [[0.30, 0.20, 0.10, 0.15, 0.10, 0.15], [0.10, 0.10, 0.20, 0.20, 0.30, 0.10]]
    ).double()
    grads = torch.tensor(
        [
            [[0.5, -0.2, 0.1, -0.4, 0.3, 0.2], [-0.1, 0.3, -0.2, 0.6, -0.5, 0.1]],
            [[-0.9, 0.8, 0.7, 0.1, -0.1, 0.1], [0.6, -0.5, 0.4, 0.05, 0.1, -0.1]],
        ]
    ).double()
    saliency = (weights * grads).abs()[None]
    for end, wanted in ((6, [0.42290765313, 0.07103701401]), (5, [0.57092533173, 0.07695676518])):
        found = shares(saliency[None], 3, end)
        np.testing.assert_allclose(found.saliency[0], wanted, atol=1e-11)
        assert found.evidence.all()


def test_the_official_reduction() -> None:
    """The published scoring routine on a stand-in whose row has a gradient."""
    arrays = np.load(GOLDEN)
    hyper = json.loads(GOLDEN.with_suffix(".json").read_text())["hyper"]
    row = hyper["query_row"]
    weights = torch.from_numpy(arrays["attn"])[None, :, :, row]
    saliency = (weights * torch.from_numpy(arrays["grad"])[:, :, :, row]).abs()
    layers = torch.stack([saliency[None, :, layer] for layer in hyper["layers_in_arrays"]])
    found = shares(layers, 9, 15)
    np.testing.assert_allclose(found.saliency[0], arrays["saliency"], atol=1e-12)


def test_a_row_without_gradient_is_no_evidence() -> None:
    found = shares(torch.zeros(1, 1, 2, 3, 5), 0, 5)
    assert not found.evidence.any()
    assert not found.saliency.any()


def test_layers_that_do_not_count_may_hold_anything() -> None:
    saliency = torch.rand(3, 2, 2, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    wanted = shares(saliency[1:2], 1, 4).saliency[0]
    start, end = torch.tensor([1, 1]), torch.tensor([4, 4])
    parts = [ops.key_shares(layer, torch.tensor([5, 5]), 0, start, end) for layer in saliency]
    parts = torch.stack(parts)
    parts[::2, 0] = float("nan")
    counts = torch.tensor([[False, True, False], [True, True, True]])
    found = share(parts, start, end, counts)
    torch.testing.assert_close(found.saliency[0], wanted)
    assert found.evidence.all()
