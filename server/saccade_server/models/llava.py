"""LLaVA: a fixed number of features an image, ordinary positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from saccade_server.models.base import ImageFeatures, ImagePixels, ServedModel
from saccade_server.models.folder import UnsupportedModelError
from saccade_server.models.spec import DecoderSpec
from saccade_server.models.text import Llama, Mistral, Qwen2

TEXT: dict[str, type[ServedModel]] = {cls.family: cls for cls in (Llama, Mistral, Qwen2)}
"""Model type of a text configuration, to the family whose decoder it means."""

TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2")


class Llava(ServedModel):
    """LLaVA with a CLIP, SigLIP or DINOv2 tower; every image has the same size."""

    family = "llava"

    @classmethod
    def describe(cls, config: Any) -> DecoderSpec:
        """The decoder of the text configuration's own family."""
        text, tower = config.get_text_config().model_type, config.vision_config.model_type
        if text not in TEXT or tower not in TOWERS:
            raise UnsupportedModelError(
                f"LLaVA with {text!r} and {tower!r} is not supported; supported: "
                f"{', '.join(TEXT)} with {', '.join(TOWERS)}"
            )
        return TEXT[text].describe(config)

    def encode_images(self, images: Sequence[ImagePixels]) -> list[ImageFeatures]:
        """Encode pixels [channels, height, width] each."""
        pixels = torch.stack([self._pixels(values) for values, _ in images])
        output = self.model.model.get_image_features(pixel_values=pixels, return_dict=True)
        return [ImageFeatures(features) for features in output.pooler_output]
