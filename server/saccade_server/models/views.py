"""What a model is shown of an image: views, each a run of features on a grid.

Most families show an image whole. Others cut it into tiles too, and may name each tile in the
prompt. All are described alike: an image is one or more views in the order of the prompt. A view
has pixels of its own, one run of positions, and the grid that its features lie on; where in the
image a feature is follows from the grid alone.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade_server.models.folder import CONFIG, UnsupportedModelError

Grid = tuple[int, int, int]
"""Frames, rows and columns of a view in patches, where they differ from view to view."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in fractions of an image's sides."""

Size = tuple[int, int]
"""Width and height in pixels."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Cells:
    """The grid of a view's features, row by row."""

    rows: int
    columns: int
    lead: int = 0  # features before the first cell's; -1: that is left out
    gap: int = 0  # features behind each row that are no cell's
    box: Box = WHOLE  # what the grid shows of the image; what lies outside of it is padding


class View(NamedTuple):
    """One preprocessed view of an image.

    ``pixels`` are what the family's tower takes: [channels, height, width], such tiles in
    [rows, columns] of them, or [patches, values].
    """

    pixels: NDArray[np.float32]
    grid: Grid | None
    features: int  # rows the vision tower will make of it
    copies: int = 1  # of each value of a channel, one after another in time, in a patch
    cells: Cells | None = None  # None: nothing is known
    before: str = ""  # what the prompt says before its features, in the placeholder's stead
    behind: str = ""

    def digest(self) -> str:
        """SHA-256 of what the vision tower sees."""
        sha = hashlib.sha256(repr((self.pixels.shape, self.grid)).encode())
        sha.update(np.ascontiguousarray(self.pixels).data)
        return sha.hexdigest()


class Pixels(NamedTuple):
    """One preprocessed image.

    ``size``: width and height of the image in pixels, upright, before anything made it smaller.
    """

    views: tuple[View, ...]
    size: Size | None = None  # None: nothing is known


class ImageLayout(ABC):
    """From what a family's image processor makes to views. It reads configurations, never weights.

    ``options`` are given to the image processor, as the family's own processor does.
    """

    options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: Any, processor: Any, tokenizer: Any = None) -> None:
        self.config = config
        self.processor = processor
        self.tokenizer = tokenizer

    @abstractmethod
    def views(self, made: Mapping[str, Any], width: int, height: int) -> tuple[View, ...]:
        """The views of an image of ``width`` x ``height`` pixels."""

    @abstractmethod
    def shrink(self, width: int, height: int) -> float:
        """How many times as long an image's sides are as what the processor makes of them.

        Raises:
            ValueError: the processor refuses such an image.
        """

    @abstractmethod
    def sizes(self, trial: tuple[View, ...]) -> tuple[object, object]:
        """What the processor makes and what the tower takes: they are equal, or do not fit."""


def tile_box(at: int, down: int, across: int) -> Box:
    """What tile number ``at`` of ``down`` rows of ``across`` shows of the image that they share."""
    row, column = divmod(at, across)
    return column / across, row / down, (column + 1) / across, (row + 1) / down


def cut(box: Box, vision: Any) -> Box:
    """What whole patches show of ``box``, a tile: its right and bottom edges may be unseen."""
    left, top, right, bottom = box
    size, patch = side(vision, "image_size"), side(vision, "patch_size")
    kept = size // patch * patch / size
    return left, top, left + (right - left) * kept, top + (bottom - top) * kept


def side(config: Any, field: str) -> int:
    """A size of a vision configuration that is one number, or twice the same.

    Raises:
        UnsupportedModelError: it is not.
    """
    value = getattr(config, field, None)
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or pair[0] != pair[1] or not isinstance(pair[0], int) or pair[0] < 1:
        raise UnsupportedModelError(
            f"{field} is {value!r} in the vision_config of its {CONFIG}; images are square here"
        )
    return pair[0]


def float32(values: Any) -> NDArray[np.float32]:
    """Pixels as a dense array."""
    return np.ascontiguousarray(values, dtype=np.float32)
