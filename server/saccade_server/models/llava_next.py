"""LLaVA-NeXT: an image once whole, and once in tiles that together have its proportions.

The tiles' features are put together as the one grid that they are, what pads the image is taken
off, and behind every row comes a learned newline. An image is two views: whole, and in detail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from saccade_server.models.base import ImageFeatures, ImagePixels
from saccade_server.models.composed import Composed, refuse
from saccade_server.models.llava import CLASS_TOKENS, class_tokens, dropped
from saccade_server.models.text import Llama, Mistral, Qwen2
from saccade_server.models.views import WHOLE, Cells, Grid, ImageLayout, View, cut, float32, side


class AnyResolutionLayout(ImageLayout):
    """The whole image first, then its tiles."""

    def views(self, made: Mapping[str, Any], width: int, height: int) -> tuple[View, ...]:
        """The grid of the second view is what unpadding leaves of its patches."""
        tiles, vision = float32(made["pixel_values"][0]), self.config.vision_config
        patches = side(vision, "image_size") // side(vision, "patch_size")
        whole = Cells(patches, patches, box=cut(WHOLE, vision))
        down, across = self._tiles(width, height)
        full = torch.empty(1, down * patches, across * patches, device="meta")
        left_over: torch.Tensor = unpad_image(full, (height, width))  # type: ignore[no-untyped-call]
        _, rows, columns = left_over.shape
        parts = tiles[1 : 1 + down * across].reshape(down, across, *tiles.shape[1:])
        scale = self.shrink(width, height)
        left, right = _kept(columns, across * patches, width / scale / tiles.shape[-1] * patches)
        top, bottom = _kept(rows, down * patches, height / scale / tiles.shape[-2] * patches)
        detail = Cells(rows, columns, gap=1, box=(left, top, right, bottom))
        return (
            View(tiles[0], None, patches * patches, cells=whole),
            View(parts, (1, rows, columns), rows * (columns + 1), cells=detail),
        )

    def shrink(self, width: int, height: int) -> float:
        """By what the tiles make together, without padding."""
        down, across = self._tiles(width, height)
        taken = side(self.config.vision_config, "image_size")
        return max(width / (across * taken), height / (down * taken))

    def sizes(self, trial: tuple[View, ...]) -> tuple[object, object]:
        """Height and width of a tile, and what tiles may make together."""
        taken = side(self.config.vision_config, "image_size")
        made = [list(size) for size in self.processor.image_grid_pinpoints]
        wanted = [list(size) for size in self.config.image_grid_pinpoints]
        return (trial[0].pixels.shape[-2:], made), ((taken, taken), wanted)

    def _tiles(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles."""
        taken = side(self.config.vision_config, "image_size")
        best = select_best_resolution((height, width), self.config.image_grid_pinpoints)
        return best[0] // taken, best[1] // taken


def _kept(cells: int, full: int, image: float) -> tuple[float, float]:
    """From where to where ``cells`` of ``full`` show an image between padding, ``image`` long."""
    first = (full - cells) // 2
    before = (full - image) / 2
    return (first - before) / image, (first + cells - before) / image


class LlavaNext(Composed):
    """LLaVA-NeXT (1.6)."""

    family = "llava_next"
    texts = (Llama, Mistral, Qwen2)
    towers = tuple(CLASS_TOKENS)
    layout = AnyResolutionLayout

    @classmethod
    def check(cls, config: Any) -> None:
        """A tile's features must be its patches, and tiles make every size that is named."""
        strategy, taken = config.vision_feature_select_strategy, config.vision_config
        if class_tokens(config) != dropped(config):
            why = f"the tower {taken.model_type!r} would not make a grid of patches"
            raise refuse("vision_feature_select_strategy", strategy, why)
        tile, sizes = side(taken, "image_size"), config.image_grid_pinpoints
        if not sizes or any(
            len(size) != 2 or any(n < 1 or n % tile for n in size) for size in sizes
        ):
            why = f"each must be a height and a width that tiles of {tile} pixels make"
            raise refuse("image_grid_pinpoints", sizes, why)

    def encode_images(self, images: Sequence[ImagePixels]) -> list[ImageFeatures]:
        """Encode whole images [channels, height, width] and tiles, see :class:`View`."""
        pixels = [self._pixels(values) for values, _ in images]
        tiles = [values.flatten(0, -4) if values.dim() > 3 else values[None] for values in pixels]
        sizes = [len(part) for part in tiles]
        features = torch.split(self._features(torch.cat(tiles)), sizes)
        return [
            ImageFeatures(found[0] if grid is None else self._packed(found, values.shape[:2], grid))
            for found, values, (_, grid) in zip(features, pixels, images, strict=True)
        ]

    def _features(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features [n, patches, hidden_size] of tiles [n, channels, height, width]."""
        config, whole = self.model.config, self.model.model
        hidden = whole.vision_tower(tiles, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        chosen = torch.cat([hidden[layer] for layer in layers], dim=-1)
        features: torch.Tensor = whole.multi_modal_projector(chosen[:, dropped(config) :])
        return features

    def _packed(self, tiles: torch.Tensor, shape: Sequence[int], grid: Grid) -> torch.Tensor:
        """One grid of the features [tiles, patches, hidden_size], a newline behind each row."""
        _, rows, columns = grid
        patches = round(tiles.shape[1] ** 0.5)
        whole = tiles.view(*shape, patches, patches, -1)
        whole = whole.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        top, left = (whole.shape[0] - rows) // 2, (whole.shape[1] - columns) // 2
        kept = whole[top : top + rows, left : left + columns]
        newline = self.model.model.image_newline.to(kept.dtype).expand(rows, 1, -1)
        return torch.cat([kept, newline], dim=1).flatten(0, 1)
