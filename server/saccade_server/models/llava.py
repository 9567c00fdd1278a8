"""LLaVA: a fixed number of features an image, ordinary positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import LlavaImageProcessorPil
from transformers.image_transforms import get_size_with_aspect_ratio

from saccade_server.models.base import ImageFeatures, ImagePixels
from saccade_server.models.composed import Composed
from saccade_server.models.text import Llama, Mistral, Qwen2
from saccade_server.models.views import Box, Cells, ImageLayout, Size, View, cut, float32, side

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
        box = self._box(width, height, (pixels.shape[2], pixels.shape[1]))
        seen = box and cut(box, self.config.vision_config)
        cells = Cells(rows, columns, lead, box=seen) if seen else None
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

    def _box(self, width: int, height: int, shown: Size) -> Box | None:
        """What the processor's picture, of width and height ``shown``, shows of an image.

        It pads to a square, resizes, crops in the middle: each if it is told to, and rounded as it
        does. None: it does something else.
        """
        made, long = self.processor, max(width, height)
        squared = bool(getattr(made, "do_pad", False)) and isinstance(made, LlavaImageProcessorPil)
        canvas = (long, long) if squared else (width, height)
        resized: Size | None = shown
        if getattr(made, "do_center_crop", False):
            crop = made.crop_size["width"], made.crop_size["height"]
            resized = self._resized(*canvas) if made.do_resize else canvas
            resized = resized if shown == crop else None
        if resized is None:
            return None
        left, right = _seen(width, canvas[0], resized[0], shown[0])
        top, bottom = _seen(height, canvas[1], resized[1], shown[1])
        return left, top, right, bottom

    def _resized(self, width: int, height: int) -> Size | None:
        size, long = self.processor.size, max(width, height)
        edge, longest = size.get("shortest_edge"), size.get("longest_edge")
        if not edge:
            return (size["width"], size["height"]) if size.get("width") else None
        if longest:
            down, across = get_size_with_aspect_ratio((height, width), edge, longest)
            return across, down
        other = int(edge * long / min(width, height))
        return (edge, other) if width <= height else (other, edge)


def _seen(image: int, canvas: int, resized: int, crop: int) -> tuple[float, float]:
    """From where to where a crop shows an image, in fractions of the image's length.

    The image is ``image`` pixels long, in the middle of a canvas that is resized and then cropped.
    """
    scale, before = resized / canvas, (canvas - image) // 2
    first = (resized - crop) // 2
    return (first / scale - before) / image, ((first + crop) / scale - before) / image


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
