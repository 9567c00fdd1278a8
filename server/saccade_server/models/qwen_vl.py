"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: features by resolution, positions on three axes.

Positions are computed here rather than by the model's ``get_rope_index``: the arithmetic is short,
needs no weights, and the model's own bookkeeping (``rope_deltas``) is state we must not touch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from saccade_server.models.base import (
    ImageFeatures,
    ImagePixels,
    ImageSpan,
    Positions,
    ServedModel,
)
from saccade_server.models.description import Traits
from saccade_server.models.views import Cells, Grid, ImageLayout, View, float32


class PatchLayout(ImageLayout):
    """Every image has the patches of its own size."""

    def views(self, made: Mapping[str, Any], width: int, height: int) -> tuple[View, ...]:
        """One view; each feature is made of a square of patches."""
        vision = self.config.vision_config
        frames, rows, columns = (int(size) for size in made["image_grid_thw"][0])
        cells = Cells(rows // vision.spatial_merge_size, columns // vision.spatial_merge_size)
        features = frames * cells.rows * cells.columns
        grid, copies = (frames, rows, columns), vision.temporal_patch_size
        return (View(float32(made["pixel_values"]), grid, features, copies, cells),)

    def shrink(self, width: int, height: int) -> float:
        """By the patches that the processor says it will make."""
        patches = self.processor.get_number_of_image_patches(height, width)
        taken = patches * self.config.vision_config.patch_size**2
        return math.sqrt(width * height / taken)

    def sizes(self, trial: tuple[View, ...]) -> tuple[object, object]:
        """Of patches, and how many of them one feature is made of, along a side."""
        made, taken = self.processor, self.config.vision_config
        return (made.patch_size, made.merge_size), (taken.patch_size, taken.spatial_merge_size)


class Qwen2VL(ServedModel):
    """Qwen2-VL, still images only."""

    family = "qwen2_vl"
    layout = PatchLayout
    traits = Traits(qkv_bias=True, output_bias=False, windows="typed", sections=(16, 24, 24))
    axes = 3

    def __init__(self, model: Any, device: torch.device) -> None:
        super().__init__(model, device)
        self._merge: int = model.config.vision_config.spatial_merge_size

    def encode_images(self, images: Sequence[ImagePixels]) -> list[ImageFeatures]:
        """Encode pixels [patches, values] each, with their grids."""
        grids = torch.tensor([_grid(grid) for _, grid in images], device=self.device)
        pixels = torch.cat([self._pixels(values) for values, _ in images])
        output = self.model.model.get_image_features(pixels, grids, return_dict=True)
        # Some versions of transformers give each level's features image by image, some in one.
        sizes = [len(features) for features in output.pooler_output]
        levels = [
            torch.split(level, sizes) if isinstance(level, torch.Tensor) else level
            for level in getattr(output, "deepstack_features", None) or ()
        ]
        return [
            ImageFeatures(features, tuple(level[i] for level in levels))
            for i, features in enumerate(output.pooler_output)
        ]

    def positions(self, tokens: Sequence[int], images: Sequence[ImageSpan] = ()) -> Positions:
        """Text counts up on all axes; an image spans its grid and advances by its longer side."""
        parts: list[torch.Tensor] = []
        index = position = 0
        for start, length, grid in images:
            parts.append(_text_positions(start - index, position))
            position += start - index
            parts.append(self._image_positions(_grid(grid), length) + position)
            position += max(_grid(grid)[1:]) // self._merge
            index = start + length
        parts.append(_text_positions(len(tokens) - index, position))
        table = torch.cat(parts, dim=1)
        delta = position - index
        return Positions(table, delta)

    def _image_positions(self, grid: Grid, length: int) -> torch.Tensor:
        """Frame, row and column of each feature of an image, int64 [3, length]."""
        sizes = (grid[0], grid[1] // self._merge, grid[2] // self._merge)
        cells = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).T
        if cells.shape[1] != length:
            raise ValueError(f"an image of grid {grid} has {cells.shape[1]} features, not {length}")
        return cells


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL; what is new is in its tower and in videos."""

    family = "qwen2_5_vl"


class Qwen3VL(Qwen2VL):
    """Qwen3-VL: features of intermediate tower layers are added behind the first text layers."""

    family = "qwen3_vl"
    traits = Traits(head_norms=True, sections=(24, 20, 20), interleaved=True)


def _text_positions(length: int, first: int) -> torch.Tensor:
    return torch.arange(first, first + length)[None].expand(3, -1)


def _grid(grid: Grid | None) -> Grid:
    if grid is None:
        raise ValueError("images of the Qwen families come with a grid")
    return grid
