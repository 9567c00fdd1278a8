"""Idefics3 and SmolVLM: tiles that the prompt names by row and column, and the whole image behind.

Between the tiles' features lie tokens of text, so each tile is a view of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch

from saccade_server.models.base import ImageFeatures, ImagePixels
from saccade_server.models.composed import Composed, refuse
from saccade_server.models.text import Llama
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


class SplitLayout(ImageLayout):
    """The image is stretched over rows and columns of tiles; the whole of it comes last."""

    options: ClassVar[Mapping[str, Any]] = {"return_row_col_info": True}

    def views(self, made: Mapping[str, Any], width: int, height: int) -> tuple[View, ...]:
        """A view a tile, row by row, and one of the whole; a small image is the whole alone."""
        down, across = int(made["rows"][0][0]), int(made["cols"][0][0])
        length = cells_of(self.config)
        named = list(self._named(down, across))
        return tuple(
            View(
                pixels=float32(pixels),
                grid=None,
                features=length**2,
                cells=cells,
                before=before,
                behind=self._mark if cells is named[-1][1] else "",
            )
            for pixels, (before, cells) in zip(made["pixel_values"][0], named, strict=True)
        )

    def shrink(self, width: int, height: int) -> float:
        """By the length that the processor gives the longer side."""
        size, whole = self.processor.size, self.processor.max_image_size
        longest = size["longest_edge"] if "longest_edge" in size else whole["longest_edge"]
        return float(max(width, height) / longest)

    def sizes(self, trial: tuple[View, ...]) -> tuple[object, object]:
        """Height and width of a tile."""
        taken = side(self.config.vision_config, "image_size")
        return trial[0].pixels.shape[-2:], (taken, taken)

    @property
    def _mark(self) -> str:
        return str(getattr(self.tokenizer, "fake_image_token", "<fake_token_around_image>"))

    def _named(self, down: int, across: int) -> Iterator[tuple[str, Cells]]:
        """What the prompt says before each view, and its grid; a line feed ends a row of tiles."""
        length, mark, vision = cells_of(self.config), self._mark, self.config.vision_config
        for at in range(down * across):
            row, column = divmod(at, across)
            line = "\n" if row and not column else ""
            box = cut(tile_box(at, down, across), vision)
            name = f"{line}{mark}<row_{row + 1}_col_{column + 1}>"
            yield name, Cells(length, length, box=box)
        line = "\n\n" if down else ""
        whole = getattr(self.tokenizer, "global_image_token", "<global-img>")
        yield f"{line}{mark}{whole}", Cells(length, length, box=cut(WHOLE, vision))


class Idefics3(Composed):
    """Idefics3."""

    family = "idefics3"
    texts = (Llama,)
    towers = ("idefics3_vision",)
    layout = SplitLayout

    @classmethod
    def check(cls, config: Any) -> None:
        """A tile's features are squares of its patches."""
        cells_of(config)

    def encode_images(self, images: Sequence[ImagePixels]) -> list[ImageFeatures]:
        """Encode tiles [channels, height, width], none of which has padding."""
        pixels = torch.stack([self._pixels(values) for values, _ in images])
        whole = self.model.model
        hidden = whole.vision_model(pixel_values=pixels).last_hidden_state
        return [ImageFeatures(features) for features in whole.connector(hidden)]


class SmolVLM(Idefics3):
    """SmolVLM and SmolVLM2, still images only."""

    family = "smolvlm"
    towers = ("smolvlm_vision",)


def cells_of(config: Any) -> int:
    """Features along a side of a tile.

    Raises:
        UnsupportedModelError: they are not squares of patches.
    """
    vision = config.vision_config
    square: int = config.scale_factor
    patches = side(vision, "image_size") // side(vision, "patch_size")
    if square < 1 or patches % square:
        raise refuse("scale_factor", square, f"it must divide {patches} patches along a side")
    return patches // square
