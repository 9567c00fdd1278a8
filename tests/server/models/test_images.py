"""The features counted for a picture are the features the tower makes of it."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from saccade_server.models.conversation import Message
from saccade_server.models.family import serve
from saccade_server.models.images import ImagePreprocessor
from saccade_server.models.prompt import PromptProcessor

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 50}


@pytest.mark.parametrize("vision", [CLIPVisionConfig, SiglipVisionConfig])
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layer", [-2, [-2, -1]])
def test_llava_features_are_counted(
    vision: Any, strategy: str, layer: Any, processors: ModuleType
) -> None:
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
    made = ImagePreprocessor(config, processor).prepare(processors.picture())
    served = serve(LlavaForConditionalGeneration(config))
    with torch.no_grad():
        (encoded,) = served.encode_images([(made.pixels, made.grid)])
    assert encoded.features.shape == (made.features, 16)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("size", [(40, 30), (17, 90), (8, 8)])
def test_qwen_features_are_counted(
    family: str,
    size: tuple[int, int],
    processors: ModuleType,
    prompt_folder: Callable[..., Any],
    tiny_model: Callable[..., Any],
) -> None:
    prompts = PromptProcessor.load(prompt_folder(family)[0])
    image = prompts.chat([Message("user", (processors.picture(*size),))]).images[0]
    served = serve(tiny_model(family))
    with torch.no_grad():
        (encoded,) = served.encode_images([(image.pixels, image.grid)])
    assert encoded.features.shape == (image.length, served.hidden_size)
    spans = [(image.start, image.length, image.grid)]
    table = served.positions(range(image.start + image.length + 2), spans).table
    assert table.shape == (3, image.start + image.length + 2)
    assert np.isfinite(image.pixels).all()
