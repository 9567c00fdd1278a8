"""Sink dimensions: looked up by shape, measured otherwise, none where there are none."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from saccade_kernels.thresholds import default_threshold
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.load import load_core
from saccade_server.models.family import ServedModel, serve
from saccade_server.models.opening import first_token
from saccade_server.models.sinks import find_sink_dims, strongest_dims
from saccade_testing import tiny
from saccade_testing.processors import PromptFolder

FAMILIES = [
    *("llama", "qwen3", "llava", "llava_next", "internvl", "smolvlm"),
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
]


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


def test_a_random_model_has_none(family: str) -> None:
    assert find_sink_dims(serve(tiny.build(family))) == ()


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_planted_ones_are_found_strongest_first(family: str) -> None:
    served = serve(tiny.build(family))
    weights = served.model.get_input_embeddings().weight
    weights[served.bos_token_id, [37, 12]] += torch.tensor([-20.0, 30.0], dtype=torch.float64)
    assert find_sink_dims(served) == (12, 37)


OPENINGS = {
    "llama": "<s>",
    "llava": "<s>",
    "llava_next": "<s>",
    "internvl": "<|im_start|>",
    "smolvlm": "<|im_start|>",
    "qwen3": "<|im_start|>",
    "qwen2_vl": "<|im_start|>",
    "qwen2_5_vl": "<|im_start|>",
    "qwen3_vl": "<|im_start|>",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_chats_begin_with_one_token(family: str, prompt_folder: PromptFolder) -> None:
    folder, saved = prompt_folder(family)
    tokenizer = getattr(saved, "tokenizer", saved)
    assert first_token(folder) == tokenizer.convert_tokens_to_ids(OPENINGS[family])


def test_without_a_template_nothing_is_known(prompt_folder: PromptFolder, tmp_path: Path) -> None:
    assert first_token(str(tmp_path)) is None
    tiny.build("llama").save_pretrained(tmp_path)
    assert first_token(str(tmp_path)) is None
    folder = tmp_path / "untemplated"
    shutil.copytree(prompt_folder("qwen3")[0], folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert first_token(str(folder)) is None
    (folder / "chat_template.jinja").unlink()
    assert first_token(str(folder)) is None


SMALL_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 64,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_looks_where_chats_begin(
    family: str, prompt_folder: PromptFolder, tmp_path: Path
) -> None:
    """A massive activation on the template's first token alone: no other prompt has it."""
    folder = tmp_path / "m"
    shutil.copytree(prompt_folder(family)[0], folder)
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    text.intermediate_size = 48
    vision = getattr(config, "vision_config", None)
    if family == "qwen2_vl":
        vision.embed_dim = 32
    for name, size in SMALL_VISION.items():
        if vision is not None and hasattr(vision, name):
            setattr(vision, name, size)
    if family in ("qwen2_vl", "qwen2_5_vl"):
        text.rope_parameters["mrope_section"] = [2, 3, 3]
    auto = AutoModelForCausalLM if vision is None else AutoModelForImageTextToText
    torch.manual_seed(0)
    model = auto.from_config(config)
    first = first_token(str(folder))
    with torch.no_grad():
        model.get_input_embeddings().weight[first, [9, 21]] += torch.tensor([20.0, -30.0])
    model.save_pretrained(folder)
    core = load_core(EngineConfig(model=str(folder), cache_tokens=256))
    assert core.info.sink_dims == (21, 9)
    served = serve(model)
    served.bos_token_id = None
    assert find_sink_dims(served) == ()


def test_at_most_three_and_only_above_the_threshold() -> None:
    residuals = 0.3 * torch.randn(3, 20, 1024)
    residuals[1, :, [10, 20, 30, 40, 50]] = torch.tensor([60.0, -90.0, 70.0, 80.0, 8.0])
    assert strongest_dims(residuals, default_threshold(1024)) == (20, 40, 30)


def test_a_dimension_must_be_massive_in_most_prompts() -> None:
    residuals = 0.3 * torch.randn(3, 20, 1024)
    residuals[:, :9, 10] = 90
    assert strongest_dims(residuals, default_threshold(1024)) == ()


@pytest.mark.parametrize("width", [64, 128, 896, 2048, 3584, 4096, 5120, 8192])
def test_massive_activations_are_found_at_any_width(width: int) -> None:
    """Two dimensions clearly above the threshold, which is scaled, and one clearly below."""
    threshold = default_threshold(width)
    assert threshold == pytest.approx(0.3125 * width**0.5)
    residuals = torch.randn(4, 20, width)
    massive = width**0.5 * torch.tensor([1.2, -0.9])
    residuals[2, :, [width // 2, 5]] = massive
    assert strongest_dims(residuals, threshold) == (width // 2, 5)
    phi = residuals[2, :, [width // 2, 5]].abs() / residuals[2].square().mean(-1).sqrt()[:, None]
    assert (phi > threshold).all()
    residuals[2, :, [width // 2, 5]] = massive * 0.2
    assert strongest_dims(residuals, threshold) == ()


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_none_however_narrow(seed: int) -> None:
    torch.manual_seed(seed)
    for width in (32, 64, 100):
        assert strongest_dims(torch.randn(9, 20, width), default_threshold(width)) == ()


PUBLISHED = {
    "llama-2-7b": ("llama", (4096, 32, 32, 32, 32000), (1415, 2533)),
    "llava-1.5-7b": ("llava", (4096, 32, 32, 32, 32064), (1415, 2533)),
    "llava-1.5-13b": ("llava", (5120, 40, 40, 40, 32064), (2100, 4743)),
    "llama-3.1-8b": ("llama", (4096, 32, 32, 8, 128256), (788, 1384, 4062)),
    "qwen2.5-vl-3b": ("qwen2_5_vl", (2048, 36, 16, 2, 151936), (318, 1819, 1874)),
    "qwen2.5-vl-7b": ("qwen2_5_vl", (3584, 28, 28, 4, 152064), (458, 2570)),
    "qwen2.5-vl-32b": ("qwen2_5_vl", (5120, 64, 40, 8, 152064), (3094, 4675)),
    "qwen3-vl-2b": ("qwen3_vl", (2048, 28, 16, 8, 151936), (1401, 1793, 1999)),
    "qwen3-vl-4b": ("qwen3_vl", (2560, 36, 32, 8, 151936), (0,)),
    "qwen3-vl-8b": ("qwen3_vl", (4096, 36, 32, 8, 151936), (1838,)),
}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``measured(dims)``: what the first tokens of any model show from now on."""

    def set_to(dims: tuple[int, ...]) -> None:
        def residuals(model: ServedModel, *_: Any) -> torch.Tensor:
            found = torch.ones(3, 20, model.hidden_size)
            for place, dim in enumerate(dims):
                found[:, :, dim] = 1000 - 100 * place
            return found

        monkeypatch.setattr("saccade_server.models.sinks.first_residuals", residuals)

    return set_to


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ones_count_unless_the_model_says_otherwise(
    name: str, measured: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    family, sizes, dims = PUBLISHED[name]
    model = Shape(family, *sizes)
    caplog.set_level("INFO")
    for seen in ((), dims, dims[:1], dims[::-1]):
        measured(seen)
        assert find_sink_dims(model) == dims
    assert all(record.levelname == "INFO" for record in caplog.records)
    for seen in ((77,), (*dims[:2], 99)):
        caplog.clear()
        measured(seen)
        assert find_sink_dims(model) == seen
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert str(list(dims)) in record.message
        assert str(list(seen)) in record.message


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", (4096, 32, 32, 8, 32000)),  # Mistral's shape
        ("qwen3", (4096, 32, 32, 32, 32000)),
        ("qwen3", (4096, 36, 32, 8, 151936)),  # Qwen3-8B, the text model
        ("llama", (4096, 32, 32, 32, 32065)),
        ("qwen2_5_vl", (3584, 28, 28, 4, 151936)),
    ],
)
def test_another_model_of_nearly_that_shape_has_only_what_is_measured(
    family: str, sizes: Any, measured: Callable[..., None]
) -> None:
    for seen in ((), (9, 4)):
        measured(seen)
        assert find_sink_dims(Shape(family, *sizes)) == seen


class Shape(ServedModel):
    """A model of which only the sizes are known."""

    def __init__(self, family: str, *sizes: int) -> None:
        self.family = family  # type: ignore[misc]
        self.hidden_size, self.layers, self.heads, self.kv_heads, self.vocab_size = sizes
