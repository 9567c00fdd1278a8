"""A packed, ragged, paged, chunked forward equals the family's own forward, in float64."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from saccade_server.models.family import ServedModel, UnsupportedModelError, serve
from saccade_server.models.probes import ResidualProbe
from saccade_server.models.scratch import ScratchCache
from saccade_testing import tiny

TOLERANCE = {"rtol": 0, "atol": 1e-8}  # norms round to float32


@pytest.fixture
def pair(family: str) -> tuple[Any, ServedModel]:
    """The same weights twice: transformers' own way, and served."""
    model = tiny.build(family)
    return model, serve(copy.deepcopy(model))


@torch.no_grad()
def own_logits(model: Any, prompt: Any, generated: Sequence[int] = ()) -> torch.Tensor:
    """The family's own forward over one whole sequence."""
    ids = torch.tensor([[*prompt.tokens, *generated]])
    return model(input_ids=ids, use_cache=False, **prompt.arguments(ids)).logits[0]


class Prepared:
    """A prompt's embeddings, positions and deepstack features, to be cut into chunks."""

    def __init__(self, served: ServedModel, prompt: Any, generated: Sequence[int] = ()) -> None:
        tokens = [*prompt.tokens, *generated]
        self.length = len(tokens)
        self.embeddings = served.embed(torch.tensor(tokens)).clone()
        place = served.positions(prompt.tokens, prompt.spans)
        behind = torch.arange(len(prompt.tokens), len(tokens)) + place.delta
        self.positions = torch.cat([place.table, behind.expand(served.axes, -1)], dim=1)
        self.is_visual = torch.zeros(len(tokens), dtype=torch.bool)
        encoded = []
        if prompt.images:
            encoded = served.encode_images([(i.pixels, i.grid) for i in prompt.images])
        for image, result in zip(prompt.images, encoded, strict=True):
            rows = slice(image.start, image.start + image.length)
            assert result.features.shape == (image.length, served.hidden_size)
            self.embeddings[rows] = result.features
            self.is_visual[rows] = True
        levels = zip(*(result.deepstack for result in encoded), strict=True)
        self.deepstack = [torch.cat(level) for level in levels]

    def visual(self, start: int, end: int) -> list[torch.Tensor]:
        before = int(self.is_visual[:start].sum())
        inside = int(self.is_visual[start:end].sum())
        return [level[before : before + inside] for level in self.deepstack]


@torch.no_grad()
def packed_logits(
    served: ServedModel,
    cache: ScratchCache,
    parts: Sequence[tuple[int, Prepared, int, int]],
    probes: tuple[ResidualProbe, ...] = (),
) -> list[torch.Tensor]:
    """One step over (sequence, prompt, start, end), logits of each part."""
    step = cache.step([(sequence, end - start) for sequence, _, start, end in parts], probes)
    step.batch.validate()
    levels = [prompt.visual(start, end) for _, prompt, start, end in parts if prompt.deepstack]
    is_visual = torch.cat([prompt.is_visual[start:end] for _, prompt, start, end in parts])
    hidden = served.forward(
        torch.cat([prompt.embeddings[start:end] for _, prompt, start, end in parts]),
        torch.cat([prompt.positions[:, start:end] for _, prompt, start, end in parts], dim=1),
        step,
        is_visual.nonzero()[:, 0] if levels else None,
        [torch.cat(level) for level in zip(*levels, strict=True)],
    )
    return list(served.logits(hidden).split([end - start for _, _, start, end in parts]))


def test_ragged_prefill_equals_the_own_forward(family: str, pair: tuple[Any, ServedModel]) -> None:
    model, served = pair
    prompts = [tiny.prompt(family, images=i, seed=i, text=70 - 30 * i) for i in (2, 0, 1)]
    prepared = [Prepared(served, prompt) for prompt in prompts]
    cache = ScratchCache(served, len(prompts), 128)
    parts = [(i, p, 0, p.length) for i, p in enumerate(prepared)]
    for got, prompt in zip(packed_logits(served, cache, parts), prompts, strict=True):
        torch.testing.assert_close(got, own_logits(model, prompt), **TOLERANCE)


@pytest.mark.parametrize("chunk", [3, 7])
def test_chunks_that_cut_through_images_equal_one_prefill(
    chunk: int, family: str, pair: tuple[Any, ServedModel]
) -> None:
    model, served = pair
    prompt = tiny.prompt(family)
    prepared = Prepared(served, prompt)
    cache = ScratchCache(served, 1, prepared.length)
    got = []
    for start in range(0, prepared.length, chunk):
        end = min(start + chunk, prepared.length)
        got += packed_logits(served, cache, [(0, prepared, start, end)])
    torch.testing.assert_close(torch.cat(got), own_logits(model, prompt), **TOLERANCE)


def test_decodes_beside_a_prefill_equal_the_own_forward(
    family: str, pair: tuple[Any, ServedModel]
) -> None:
    model, served = pair
    prompts = [tiny.prompt(family, images=1, seed=1), tiny.prompt(family, images=2, seed=2)]
    late = tiny.prompt(family, images=1, seed=3, text=31)
    generated = [11, 29, 50, 12, 77]
    growing = [Prepared(served, prompt, generated) for prompt in prompts]
    starts = [len(prompt.tokens) for prompt in prompts]
    chunks = Prepared(served, late)
    cache = ScratchCache(served, 3, 128)
    packed_logits(served, cache, [(i, p, 0, starts[i]) for i, p in enumerate(growing)])
    found: list[list[torch.Tensor]] = [[], [], []]
    for index in range(len(generated)):
        parts = [(i, p, starts[i] + index, starts[i] + index + 1) for i, p in enumerate(growing)]
        cut = chunks.length * index // 5, chunks.length * (index + 1) // 5
        for sequence, logits in enumerate(
            packed_logits(served, cache, [*parts, (2, chunks, *cut)])
        ):
            found[sequence].append(logits)
    for sequence, prompt in enumerate(prompts):
        own = own_logits(model, prompt, generated)[starts[sequence] :]
        torch.testing.assert_close(torch.cat(found[sequence]), own, **TOLERANCE)
    torch.testing.assert_close(torch.cat(found[2]), own_logits(model, late), **TOLERANCE)


def test_windows_are_narrower_than_the_prompts_that_test_them() -> None:
    assert len(tiny.prompt("qwen3").tokens) > tiny.WINDOW


def test_images_encoded_together_or_alone_are_the_same(
    family: str, pair: tuple[Any, ServedModel]
) -> None:
    _, served = pair
    images = [(image.pixels, image.grid) for image in tiny.prompt(family).images]
    if not images:
        with pytest.raises(ValueError, match="take no images"):
            served.encode_images([(torch.zeros(3, 8, 8), None)])
        return
    with torch.no_grad():
        together = served.encode_images(images)
        alone = [served.encode_images([image])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.features, other.features, **TOLERANCE)
        assert len(one.deepstack) == len(other.deepstack) == (2 if family == "qwen3_vl" else 0)
        for level, same in zip(one.deepstack, other.deepstack, strict=True):
            torch.testing.assert_close(level, same, **TOLERANCE)


def test_attributes(family: str, pair: tuple[Any, ServedModel]) -> None:
    _, served = pair
    sizes = (served.layers, served.heads, served.kv_heads, served.head_dim, served.hidden_size)
    assert sizes == (4, 4, 2, 16, 64)
    assert (served.vocab_size, served.max_position) == (tiny.VOCABULARY, 512)
    assert served.eos_token_ids == (tiny.EOS,)
    assert served.family == served.model.config.model_type
    assert served.image_token_id == (tiny.IMAGE_TOKEN if family in tiny.IMAGE_FAMILIES else None)
    assert (served.dtype, served.device) == (torch.float64, torch.device("cpu"))
    assert not any(parameter.requires_grad for parameter in served.model.parameters())


def test_logits_of_a_half_precision_model_are_float32() -> None:
    served = serve(tiny.build("llama", dtype=torch.bfloat16))
    assert served.logits(torch.zeros(2, 64, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_model_is_served_once(pair: tuple[Any, ServedModel]) -> None:
    _, served = pair
    with pytest.raises(UnsupportedModelError, match="layers were taken out"):
        serve(served.model)


def test_the_vision_tower_keeps_its_own_attention(
    family: str, pair: tuple[Any, ServedModel]
) -> None:
    _, served = pair
    if family in tiny.IMAGE_FAMILIES:
        assert served.model.config.vision_config._attn_implementation == "sdpa"
