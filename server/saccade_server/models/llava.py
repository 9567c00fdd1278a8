"""LLaVA: a fixed number of features an image, ordinary positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saccade_server.models.base import ImageFeatures, ImagePixels, ServedModel
from saccade_server.models.text import Llama


class Llava(ServedModel):
    """LLaVA with a CLIP or SigLIP tower; every image has the same size."""

    family = "llava"
    traits = Llama.traits

    def encode_images(self, images: Sequence[ImagePixels]) -> list[ImageFeatures]:
        """Encode pixels [channels, height, width] each."""
        pixels = torch.stack([self._pixels(values) for values, _ in images])
        output = self.model.model.get_image_features(pixel_values=pixels, return_dict=True)
        return [ImageFeatures(features) for features in output.pooler_output]
