"""Families that cut images into tiles, whole: from a picture to an answer, and the self-test."""

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from saccade_interventions.registry import Registry
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.load import load_core
from saccade_server.engine.local import LocalEngine
from saccade_server.engine.request import SamplingParams
from saccade_server.models.conversation import Message
from saccade_server.models.opening import first_token
from saccade_server.models.prompt import PromptProcessor
from saccade_server.requests.prepared import Prepared
from saccade_server.selftest import examine
from saccade_testing import processors, tiny
from saccade_testing.engine import core_with, generate, make_request, run

FAMILIES = ["llava_next", "internvl", "idefics3", "smolvlm"]


@pytest.fixture(params=FAMILIES)
def folder(
    request: pytest.FixtureRequest, prompt_folder: Callable[..., Any], tmp_path: Path
) -> tuple[Path, Any, Any]:
    """A whole model folder, its model and its processor."""
    saved, processor = prompt_folder(request.param)
    path = tmp_path / "m"
    shutil.copytree(saved, path)
    config = AutoConfig.from_pretrained(path)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for weight in model.parameters():  # an initialisation that attends to something
        torch.nn.init.normal_(weight, std=0.15) if weight.dim() > 1 else None
    model.get_output_embeddings().weight.data[config.image_token_id] = 0
    sink = first_token(str(path))
    model.get_input_embeddings().weight.data[sink, [9, 21]] += torch.tensor([20.0, -30.0])
    model.save_pretrained(path)
    return path, model.eval(), processor


def test_answers_are_those_of_generate(folder: Any) -> None:
    """Text and pictures of several sizes, through the folder's own processor and template."""
    path, model, processor = folder
    prompts = PromptProcessor.load(str(path))
    core = load_core(EngineConfig(model=str(path), cache_tokens=4096, max_batched_tokens=64))
    sizes = [[(90, 40)], [(30, 70), (24, 24)], [], [(130, 33), (64, 60), (20, 90)]]
    requests, wanted = [], {}
    for number, some in enumerate(sizes):
        pictures = [processors.picture(*size, seed=number) for size in some]
        parts = [part for picture in pictures for part in ("Look: ", picture)]
        prompt = prompts.chat([Message("user", (*parts, "What is it?"))])
        text = processor.apply_chat_template(
            [{"role": "user", "content": [*map(item, parts), item("What is it?")]}],
            add_generation_prompt=True,
        )
        shown = {"images": [pictures]} if pictures else {}
        inputs = processor(text=[text], **shown, return_tensors="pt")
        assert list(prompt.tokens) == inputs["input_ids"][0].tolist()
        answer = model.generate(**inputs, do_sample=False, max_new_tokens=8)
        wanted[str(number)] = answer[0, len(prompt.tokens) :].tolist()
        sampling = SamplingParams(max_tokens=8, temperature=0.0)
        requests.append(Prepared(prompt).request(str(number), sampling))
    assert {name: result.tokens for name, result in run(core, requests).items()} == wanted
    assert len({tuple(tokens) for tokens in wanted.values()}) > 1


def item(part: Any) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


@pytest.mark.parametrize("family", ["llava_next", "smolvlm"])
def test_only_equal_views_are_shared(family: str) -> None:
    """The last view alone differs: pages before it are found again, and none behind its start."""
    core = core_with(family)
    first = tiny.prompt(family, images=1, seed=3, text=80)
    view = first.images[-1]
    other = replace(view, pixels=view.pixels[..., ::-1].copy())
    second = replace(first, images=(*first.images[:-1], other))
    run(core, [make_request(first, "a")])
    encoded = core.stats().image_encodes
    result = run(core, [make_request(second, "b")])["b"]
    assert core.stats().image_encodes == encoded + 1
    assert result.last.cached_tokens == 64
    assert result.tokens == generate(tiny.build(family), second)


def test_methods_pass_the_self_test(folder: Any) -> None:
    path, _, _ = folder
    core = load_core(EngineConfig(model=str(path), cache_tokens=4096, max_batched_tokens=1024))
    prompts = PromptProcessor.load(str(path))

    async def trial() -> Any:
        engine = LocalEngine(core)
        try:
            return await examine(engine, prompts, Registry.discover())
        finally:
            await engine.close()

    found = asyncio.run(trial())
    assert not found.faults
    assert {"var", "vcd", "pai", "pai_contrast", "vhr", "vaf"} <= found.tested
