"""The features counted for a picture are the features the tower makes of it."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from saccade_server.models.conversation import Message
from saccade_server.models.family import serve
from saccade_server.models.images import LARGE_PIXELS, REDUCING_GAP, ImagePreprocessor
from saccade_server.models.prompt import PromptProcessor
from saccade_testing import processors, tiny
from saccade_testing.processors import PromptFolder

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 50}


@pytest.mark.parametrize("vision", [CLIPVisionConfig, SiglipVisionConfig, Dinov2Config])
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layer", [-2, [-2, -1]])
def test_llava_features_are_counted(vision: Any, strategy: str, layer: Any) -> None:
    config = LlavaConfig(
        vision_config=vision(**VISION),
        text_config=LlamaConfig(**TEXT, num_attention_heads=2),
        image_token_id=5,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
    )
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    (made,) = ImagePreprocessor(config, processor).prepare(processors.picture()).views
    served = serve(LlavaForConditionalGeneration(config))
    with torch.no_grad():
        (encoded,) = served.encode_images([(made.pixels, made.grid)])
    assert encoded.features.shape == (made.features, 16)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("size", [(40, 30), (17, 90), (8, 8)])
def test_qwen_features_are_counted(
    family: str, size: tuple[int, int], prompt_folder: PromptFolder
) -> None:
    prompts = PromptProcessor.load(prompt_folder(family)[0])
    image = prompts.chat([Message("user", (processors.picture(*size),))]).images[0]
    served = serve(tiny.build(family))
    with torch.no_grad():
        (encoded,) = served.encode_images([(image.pixels, image.grid)])
    assert encoded.features.shape == (image.length, served.hidden_size)
    spans = [(image.start, image.length, image.grid)]
    table = served.positions(range(image.start + image.length + 2), spans).table
    assert table.shape == (3, image.start + image.length + 2)
    assert np.isfinite(image.pixels).all()


def preprocessor(**size: int) -> ImagePreprocessor:
    """One with CLIP's processor, which resizes to ``size`` and crops 24 x 24."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT, num_attention_heads=2),
        image_token_id=5,
    )
    crop = {"height": 24, "width": 24}
    return ImagePreprocessor(config, CLIPImageProcessorPil(size=size, crop_size=crop))


@pytest.mark.parametrize("size", [{"shortest_edge": 24}, {"height": 24, "width": 24}])
def test_what_a_tower_of_one_size_can_use(size: dict[str, int]) -> None:
    images = preprocessor(**size)
    assert images.reduction(4096, 4096) == 1  # LARGE_PIXELS, decoded whole
    assert images.reduction(4097, 4096) == 4096 // (24 * REDUCING_GAP)
    assert images.reduction(40_000, 500) == 500 // (24 * REDUCING_GAP)
    assert images.reduction(500_000, 60) == 1
    assert LARGE_PIXELS == 4096 * 4096


def test_what_a_tower_of_any_size_can_use(prompt_folder: PromptFolder) -> None:
    prompts = PromptProcessor.load(prompt_folder("qwen2_5_vl")[0])
    assert prompts._images is not None
    processor = prompts._images._processor
    for width, height in ((5000, 4000), (8000, 6000), (48_000, 400)):
        factor = prompts.reduction(width, height)
        taken = processor.get_number_of_image_patches(height, width) * processor.patch_size**2
        gap = (width * height / taken) ** 0.5
        assert factor > 1
        assert REDUCING_GAP <= gap / factor < 2 * REDUCING_GAP
    assert prompts.reduction(4000, 4000) == 1
    assert prompts.reduction(50_000, 2) == 1
    assert prompts.reduction(500_000, 200) == 1  # more than 200 times as long as wide


@pytest.mark.parametrize(
    ("family", "made"),
    [("llava_next", 9000 / 48), ("internvl", 9000 / 48), ("idefics3", 125), ("smolvlm", 125)],
)
def test_what_a_tower_of_tiles_can_use(
    family: str, made: float, prompt_folder: PromptFolder
) -> None:
    """9000 x 5000 pixels become 48 x 27 in tiles, a canvas of 48 x 24, a longer side of 72."""
    prompts = PromptProcessor.load(prompt_folder(family)[0])
    factor = prompts.reduction(9000, 5000)
    assert factor == int(made / REDUCING_GAP)
    assert prompts.reduction(4000, 4000) == 1
    small, whole = (
        [view.cells for view in prompts.prepare_image(Image.new("RGB", size)).views]
        for size in ((9000 // factor, 5000 // factor), (900, 500))
    )
    assert len(small) == len(whole) > 1


def test_language_models_use_no_pixels(prompt_folder: PromptFolder) -> None:
    assert PromptProcessor.load(prompt_folder("qwen3")[0]).reduction(9000, 9000) == 1


@pytest.mark.parametrize("shift", [0, 4, 28])
def test_an_image_made_smaller_first_looks_the_same(shift: int) -> None:
    """A picture with structure of every size, by the factor that its preprocessor names."""
    side, random = 24 * REDUCING_GAP * 4, np.random.default_rng(0)
    layers = []
    for cells in (4, 16, 64, side):
        grid = random.integers(0, 256, (cells, cells, 3), np.uint8)
        shape = (side + shift, side)
        layers.append(np.asarray(Image.fromarray(grid).resize(shape, Image.Resampling.BICUBIC)))
    picture = Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))
    images = preprocessor(shortest_edge=24)
    whole, reduced = (images.prepare(made).views[0].pixels for made in (picture, picture.reduce(4)))
    steps = np.abs(whole - reduced) * 0.27 * 255
    assert steps.mean() < 1
    assert steps.max() < 6
