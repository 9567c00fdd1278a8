"""Residuals and head outputs equal those of the family's own forward, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saccade_kernels.residual import SiteKind
from saccade_server.calibration.examples import CalibrationError, Labelled
from saccade_server.calibration.reading import Reader
from saccade_server.models.family import serve
from saccade_server.models.prompt import PreparedImage, PromptProcessor, RenderedPrompt
from saccade_testing import tiny

ASKED = Labelled("x:1", (("user", "?"),), (), "Yes.")


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


class Rendered:
    """Stands for a prompt processor: every conversation is one given prompt."""

    def __init__(self, prompt: Any) -> None:
        images = tuple(
            PreparedImage("", image.start, image.length, image.pixels, image.grid)
            for image in prompt.images
        )
        self.prompt = RenderedPrompt(prompt.tokens, "", ((0, 0),) * len(prompt.tokens), images)

    def chat(self, messages: Any, add_generation_prompt: bool) -> RenderedPrompt:
        assert add_generation_prompt
        return self.prompt


def test_activations_are_the_models_own(family: str) -> None:
    model, prompt = tiny.build(family), tiny.prompt(family)
    served = serve(copy.deepcopy(model))
    reader = Reader(served, Rendered(prompt))  # type: ignore[arg-type]
    found = reader.read(ASKED, [0, 1, 3])
    outputs = {kind: reader.read(ASKED, [0, 2], kind).at_site for kind in list(SiteKind)[1:]}
    entering: dict[int, torch.Tensor] = {}
    heads: dict[int, torch.Tensor] = {}
    added: dict[tuple[SiteKind, int], torch.Tensor] = {}

    def keep(kind: SiteKind, index: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, output: Any) -> None:
            added[kind, index] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    for index, layer in enumerate(model.get_decoder().layers):
        normed = hasattr(layer, "post_feedforward_layernorm")
        modules = {
            SiteKind.ATTENTION_OUTPUT: "post_attention_layernorm" if normed else "self_attn",
            SiteKind.MLP_OUTPUT: "post_feedforward_layernorm" if normed else "mlp",
        }
        for kind, name in modules.items():
            getattr(layer, name).register_forward_hook(keep(kind, index))
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, index=index: entering.update(
                {index: args[0] if args else kwargs["hidden_states"]}
            ),
            with_kwargs=True,
        )
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, args, index=index: heads.update({index: args[0]})
        )
    ids = torch.tensor([prompt.tokens])
    with torch.no_grad():
        model(input_ids=ids, use_cache=False, **prompt.arguments(ids))
    assert sorted(found.at_site) == [0, 1, 3]
    for layer, residual in found.at_site.items():
        torch.testing.assert_close(residual, entering[layer][0, -1].float(), rtol=0, atol=2e-5)
    for kind, read in outputs.items():
        assert sorted(read) == [0, 2]
        for layer, output in read.items():
            wanted = added[kind, layer][-1].float()
            torch.testing.assert_close(output, wanted, rtol=0, atol=2e-5)
    for layer in range(4):
        split = heads[layer][0].view(len(prompt.tokens), 4, 16).float()
        torch.testing.assert_close(found.heads[layer], split[-1], rtol=0, atol=2e-6)
        torch.testing.assert_close(found.head_means[layer], split.mean(0), rtol=0, atol=2e-6)


@pytest.fixture
def reader(prompt_folder: Callable[[str], tuple[str, Any]]) -> tuple[Reader, PromptProcessor]:
    """A llama that has a real tokenizer; its vocabulary is cut to the tokenizer's ids."""
    folder, _ = prompt_folder("llama")
    prompts = PromptProcessor.load(folder)
    model = tiny.build("llama")
    model.resize_token_embeddings(prompts.vocab_size)
    return Reader(serve(model), prompts), prompts


def test_an_answer_is_read_at_its_last_token(reader: tuple[Reader, PromptProcessor]) -> None:
    """Not at the end-of-sequence token behind it; more text behind it changes nothing."""
    read, _ = reader
    asked = Labelled("x:1", (("user", "a red cat?"), ("assistant", "a blue dog")), (), "true")
    prompt, row = read._render(asked)
    start, end = prompt.offsets[row]
    assert prompt.text[start:end].endswith("g")
    assert prompt.text[:end].endswith("a blue dog")
    assert row < len(prompt.tokens) - 1
    plain, last = read._render(Labelled("x:2", (("user", "a red cat?"),), (), "true"))
    assert last == len(plain.tokens) - 1
    assert plain.text.endswith("ASSISTANT:")


def test_a_prompt_that_is_too_long_is_named(reader: tuple[Reader, PromptProcessor]) -> None:
    read, _ = reader
    long = Labelled("p.jsonl:7", (("user", "cat " * 700),), (), "true")
    with pytest.raises(CalibrationError, match=r"p\.jsonl:7: a prompt of \d+ tokens"):
        read.read(long, [1])


def test_images_for_a_text_model_are_refused(
    reader: tuple[Reader, PromptProcessor], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    shown = Labelled("p.jsonl:3", (("user", "cat"),), (path,), "true")
    with pytest.raises(CalibrationError, match=r"p\.jsonl:3: this model does not accept images"):
        reader[0].read(shown, [1])
