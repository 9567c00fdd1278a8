"""LLaVA: a fixed number of features an image, ordinary positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from saccade_server.models.base import ImageFeatures, ImagePixels
from saccade_server.models.composed import Composed
from saccade_server.models.text import Llama, Mistral, Qwen2
from saccade_server.models.views import WHOLE, Box, Cells, ImageLayout, View, cut, float32, side

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0, "dinov2": 1}
"""Model type of a tower, to the features that it makes before those of its patches."""


class FixedLayout(ImageLayout):
    """Every image has the tower's size, whole or with its longer side cropped."""

    def views(self, made: Mapping[str, Any], width: int, height: int) -> tuple[View, ...]:
        """One view; the tower's class token is before its patches, or the first one left out."""
        pixels, patch = (
            float32(made["pixel_values"][0]),
            side(self.config.vision_config, "patch_size"),
        )
        rows, columns = (length // patch for length in pixels.shape[-2:])
        lead = class_tokens(self.config) - dropped(self.config)
        box = cut(self._box(width, height), self.config.vision_config)
        cells = Cells(rows, columns, lead, box=box)
        return (View(pixels, None, rows * columns + lead, cells=cells),)

    def shrink(self, width: int, height: int) -> float:
        """By the largest of the lengths that the processor resizes to, and the tower's own."""
        size = self.processor.size
        named = [size[name] for name in ("height", "width", "shortest_edge") if name in size]
        lengths = [side(self.config.vision_config, "image_size"), *(n for n in named if n)]
        return float(min(width, height) / max(lengths))

    def sizes(self, trial: tuple[View, ...]) -> tuple[object, object]:
        """Height and width."""
        taken = side(self.config.vision_config, "image_size")
        return trial[0].pixels.shape[-2:], (taken, taken)

    def _box(self, width: int, height: int) -> Box:
        """What is left of the image in the middle where the processor crops it."""
        shortest = self.processor.size.get("shortest_edge")
        if not shortest or not getattr(self.processor, "do_center_crop", False):
            return WHOLE
        scale, crop = shortest / min(width, height), self.processor.crop_size
        kept = crop["width"] / (width * scale), crop["height"] / (height * scale)
        return (0.5 - kept[0] / 2, 0.5 - kept[1] / 2, 0.5 + kept[0] / 2, 0.5 + kept[1] / 2)


class Llava(Composed):
    """LLaVA with a CLIP, SigLIP or DINOv2 tower; every image has the same size."""

    family = "llava"
    texts = (Llama, Mistral, Qwen2)
    towers = tuple(CLASS_TOKENS)
    layout = FixedLayout

    def encode_images(self, images: Sequence[ImagePixels]) -> list[ImageFeatures]:
        """Encode pixels [channels, height, width] each."""
        pixels = torch.stack([self._pixels(values) for values, _ in images])
        output = self.model.model.get_image_features(pixel_values=pixels, return_dict=True)
        return [ImageFeatures(features) for features in output.pooler_output]


def class_tokens(config: Any) -> int:
    """Features that the tower makes before those of patches."""
    return CLASS_TOKENS[config.vision_config.model_type]


def dropped(config: Any) -> int:
    """Features at the beginning that are left out."""
    return 1 if config.vision_feature_select_strategy == "default" else 0
