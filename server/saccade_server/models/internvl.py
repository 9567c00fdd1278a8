"""InternVL 3 in transformers' format: tiles of one size, and the whole image behind several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from saccade_server.models.base import ImageFeatures, ImagePixels
from saccade_server.models.composed import Composed, refuse
from saccade_server.models.text import Qwen2, Qwen3
from saccade_server.models.views import (
    WHOLE,
    Cells,
    ImageLayout,
    View,
    cut,
    float32,
    side,
    tile_box,
)


class CanvasLayout(ImageLayout):
    """The image is stretched over a canvas of tiles; the whole of it comes last."""

    options: ClassVar[Mapping[str, Any]] = {"crop_to_patches": True}

    def views(self, made: Mapping[str, Any], width: int, height: int) -> tuple[View, ...]:
        """A view a tile, row by row, and one of the whole if there is more than one tile."""
        tiles = float32(made["pixel_values"])
        down, across = self._canvas(width, height)
        boxes = [tile_box(at, down, across) for at in range(down * across)]
        if len(boxes) > 1:
            boxes.append(WHOLE)
        length, vision = cells_of(self.config), self.config.vision_config
        grids = [Cells(length, length, box=cut(box, vision)) for box in boxes]
        last = len(grids) - 1
        return tuple(
            View(
                pixels=pixels,
                grid=None,
                features=length**2,
                cells=cells,
                before="" if at else getattr(self.tokenizer, "start_image_token", "<img>"),
                behind="" if at < last else getattr(self.tokenizer, "end_image_token", "</img>"),
            )
            for at, (pixels, cells) in enumerate(zip(tiles, grids, strict=True))
        )

    def shrink(self, width: int, height: int) -> float:
        """By the side that is stretched most."""
        down, across = self._canvas(width, height)
        taken = side(self.config.vision_config, "image_size")
        return min(width / (across * taken), height / (down * taken))

    def sizes(self, trial: tuple[View, ...]) -> tuple[object, object]:
        """Height and width of a tile."""
        taken = side(self.config.vision_config, "image_size")
        return trial[0].pixels.shape[-2:], (taken, taken)

    def _canvas(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles."""
        made, size = self.processor, self.processor.size
        if made.max_patches <= 1:
            return 1, 1
        tile, most = (size["height"], size["width"]), (made.min_patches, made.max_patches)
        across, down = get_optimal_tiled_canvas((height, width), tile, *most)
        return down, across


class InternVL(Composed):
    """InternVL 3 and 3.5."""

    family = "internvl"
    texts = (Qwen2, Qwen3)
    towers = ("internvl_vision",)
    layout = CanvasLayout

    @classmethod
    def check(cls, config: Any) -> None:
        """A tile's features are squares of its patches, all but the class token's."""
        strategy, layer = config.vision_feature_select_strategy, config.vision_feature_layer
        if strategy != "default":
            why = "the tower's class token has no place among patches"
            raise refuse("vision_feature_select_strategy", strategy, why)
        if not isinstance(layer, int):
            raise refuse("vision_feature_layer", layer, "features come from one layer")
        norm = config.vision_config.norm_type
        if norm not in ("layer_norm", "rms_norm"):
            raise refuse("norm_type", norm, "the norms that are served: layer_norm, rms_norm")
        made = cells_of(config) ** 2
        if config.image_seq_length != made:
            why = f"a tile of the vision_config has {made} features"
            raise refuse("image_seq_length", config.image_seq_length, why)

    def encode_images(self, images: Sequence[ImagePixels]) -> list[ImageFeatures]:
        """Encode tiles [channels, height, width]."""
        pixels = torch.stack([self._pixels(values) for values, _ in images])
        output = self.model.model.get_image_features(pixel_values=pixels, return_dict=True)
        return [ImageFeatures(features) for features in output.pooler_output]


def cells_of(config: Any) -> int:
    """Features along a side of a tile.

    Raises:
        UnsupportedModelError: they are not squares of patches.
    """
    vision, ratio = config.vision_config, config.downsample_ratio
    patches = side(vision, "image_size") // side(vision, "patch_size")
    square = round(1 / ratio) if ratio > 0 else 0
    if square < 1 or 1 / square != ratio or patches % square:
        why = f"squares of patches must share {patches} along each side"
        raise refuse("downsample_ratio", ratio, why)
    return patches // square
