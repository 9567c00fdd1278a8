"""Probes see the residual that transformers reports as hidden states."""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from saccade_kernels.controls import CLASSES
from saccade_kernels.residual import SiteKind
from saccade_kernels.sinks import SinkTags, sink_scores
from saccade_server.models.family import ServedModel, serve
from saccade_server.models.probes import SinkProbe
from saccade_server.models.scratch import ScratchCache
from saccade_testing import tiny

DIMS = torch.tensor([3, 40])


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


@dataclass(frozen=True)
class Recorder:
    layers: frozenset[int]
    seen: dict[int, torch.Tensor] = field(default_factory=dict)
    kind: SiteKind = SiteKind.RESIDUAL

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        self.seen[layer] = hidden.clone()


def own_residuals(model: Any, tokens: list[int]) -> tuple[torch.Tensor, ...]:
    """Residuals [T, hidden] entering each layer, then the output."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
    return tuple(hidden[0] for hidden in output.hidden_states)


def run(
    served: ServedModel, cache: ScratchCache, chunk: list[int], start: int, probes: Any
) -> None:
    step = cache.step([(0, len(chunk))], probes)
    positions = torch.arange(start, start + len(chunk)).expand(served.axes, -1)
    with torch.no_grad():
        served.forward(served.embed(torch.tensor(chunk)), positions, step)


def test_a_probe_sees_the_residual_entering_its_layers(family: str) -> None:
    model = tiny.build(family)
    served = serve(copy.deepcopy(model))
    tokens = list(tiny.prompt(family, images=0).tokens)
    recorder = Recorder(frozenset({0, 1, 3}))
    run(served, ScratchCache(served, 1, 64), tokens, 0, (recorder,))
    own = own_residuals(model, tokens)
    assert set(recorder.seen) == {0, 1, 3}
    for layer, hidden in recorder.seen.items():
        torch.testing.assert_close(hidden, own[layer], rtol=0, atol=1e-9)


def test_a_probe_sees_the_residual_of_image_features(family: str) -> None:
    """Those of every view, and of the tokens between them, where transformers has them."""
    prompt = tiny.prompt(family, images=2)
    if not prompt.images:
        return
    model = tiny.build(family)
    served = serve(copy.deepcopy(model))
    ids, length = torch.tensor([prompt.tokens]), len(prompt.tokens)
    recorder = Recorder(frozenset({0, 3}))
    step = ScratchCache(served, 1, length).step([(0, length)], (recorder,))
    embeddings = served.embed(ids[0]).clone()
    with torch.no_grad():
        shown = {"input_ids": ids, "use_cache": False, **prompt.arguments(ids)}
        own = model(**shown, output_hidden_states=True).hidden_states
        encoded = served.encode_images([(view.pixels, view.grid) for view in prompt.images])
        rows = torch.zeros(length, dtype=torch.bool)
        for view, found in zip(prompt.images, encoded, strict=True):
            embeddings[view.start : view.start + view.length] = found.features
            rows[view.start : view.start + view.length] = True
        levels = [torch.cat(level) for level in zip(*(e.deepstack for e in encoded), strict=True)]
        positions = served.positions(prompt.tokens, prompt.spans).table
        served.forward(
            embeddings, positions, step, rows.nonzero()[:, 0] if levels else None, levels
        )
    for layer, hidden in recorder.seen.items():
        torch.testing.assert_close(hidden, own[layer][0], rtol=0, atol=1e-8)


def sink_tags(slots: torch.Tensor, count: int, threshold: float) -> SinkTags:
    remap = torch.arange(CLASSES)[None].clone()
    remap[0, 1] = 4
    return SinkTags(
        slots=slots,
        position=torch.arange(count),
        starts=torch.tensor([0, count]),
        base=torch.ones(count, dtype=torch.int64),
        threshold=torch.tensor([threshold]),
        tag_row=torch.tensor([1]),
        remap=remap,
        require=torch.tensor([-1]),
        whole=torch.ones(1, dtype=torch.uint8),
    )


def test_scores_over_chunks_equal_those_of_the_own_hidden_states(family: str) -> None:
    model = tiny.build(family)
    served = serve(copy.deepcopy(model))
    tokens = list(tiny.prompt(family, images=0).tokens)
    layers = [1, 2]
    own = own_residuals(model, tokens)
    want = {layer: sink_scores(own[layer], DIMS).float() for layer in layers}
    threshold = float(torch.cat([*want.values()]).median())
    cache = ScratchCache(served, 1, 64)
    scores = torch.full((4, 64), -1.0)
    tags = torch.zeros(2, 4, 64, dtype=torch.uint8)
    for start, end in ((0, 5), (5, 6), (6, len(tokens))):
        probe = SinkProbe(
            layers=frozenset(layers),
            rows=torch.arange(end - start),
            dims=DIMS,
            slots=cache.slots(0, start, end),
            scores=scores,
            tags=sink_tags(cache.slots(0, 0, end), end, threshold),
            tag_table=tags,
            met=torch.zeros(4, 2, dtype=torch.uint8),
        )
        run(served, cache, tokens[start:end], start, (probe,))
    slots = cache.slots(0, 0, len(tokens))
    for layer in layers:
        torch.testing.assert_close(scores[layer, slots], want[layer])
        is_sink = scores[layer, slots] >= threshold
        assert tags[1, layer, : len(tokens)].tolist() == [4 if s else 1 for s in is_sink]
    assert (scores[[0, 3]] == -1).all()
    assert not tags[0].any()
    assert not tags[1, [0, 3]].any()
    assert not tags[1, :, len(tokens) :].any()


def test_probes_of_different_dimensions_share_a_step() -> None:
    served = serve(tiny.build("llama"))
    tokens = list(range(10, 22))
    recorder = Recorder(frozenset({2}))
    pool = torch.zeros(4, 64)
    cache = ScratchCache(served, 1, 64)
    groups = [([0, 2], torch.tensor([5])), ([1, 7, 9], torch.tensor([8, 61]))]
    probes = [
        SinkProbe(
            frozenset({2}),
            torch.tensor(rows),
            dims,
            torch.tensor(rows),
            pool,
            sink_tags(torch.tensor(rows), len(rows), 1e9),
            torch.zeros(2, 4, 64, dtype=torch.uint8),
            torch.zeros(4, 2, dtype=torch.uint8),
        )
        for rows, dims in groups
    ]
    run(served, cache, tokens, 0, (recorder, *probes))
    for rows, dims in groups:
        want = sink_scores(recorder.seen[2][rows], dims).float()
        torch.testing.assert_close(pool[2, rows], want)
