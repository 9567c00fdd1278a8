"""Masks over an image as requests send them: COCO's run lengths, which say much in few bytes.

    {"size": [height, width], "counts": [n0, n1, ...]}

Column by column from the left, each from top to bottom: n0 unmarked pixels, n1 marked ones, and so
on. Nothing here allocates the pixels that a mask claims to have.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MOST_RUNS = 16_384
LONGEST_SIDE = 65_535

Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]
Run = Annotated[int, Field(ge=0, le=LONGEST_SIDE**2)]


class Mask(BaseModel):
    """Marked pixels in COCO's uncompressed run lengths, column by column."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    size: list[Side] = Field(min_length=2, max_length=2)
    """[height, width] of the mask: the image's, or smaller with the same proportions."""

    counts: list[Run] = Field(min_length=2, max_length=MOST_RUNS)
    """Lengths of runs of pixels, unmarked and marked in turn, the first one unmarked."""

    @model_validator(mode="after")
    def _adds_up(self) -> Mask:
        height, width = self.size
        total = sum(self.counts)
        if total != height * width:
            message = "the runs have {total} pixels in all; {height} x {width} are {pixels}"
            facts = {"total": total, "height": height, "width": width, "pixels": height * width}
            raise PydanticCustomError("mask", message, {**facts, "at": "counts"})
        if not self.marked:
            raise PydanticCustomError("mask", "the mask marks no pixel", {"at": "counts"})
        return self

    @property
    def marked(self) -> int:
        """How many pixels are marked."""
        return sum(self.counts[1::2])

    def areas(self, across: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.float64]:
        """Marked area of every cell of a grid, in fractions of the whole: float64 [rows, columns].

        ``across`` [columns + 1] and ``down`` [rows + 1] are the grid's edges in fractions.
        """
        height, width = self.size
        edges = np.clip(across, 0, 1) * width
        lines = np.clip(down, 0, 1) * height
        pieces, full = self._pieces()
        found = np.empty((len(lines) - 1, len(edges) - 1))
        for row, (top, bottom) in enumerate(pairwise(lines)):
            inside = np.minimum(pieces.end, bottom) - np.maximum(pieces.start, top)
            marked = np.bincount(pieces.column, np.maximum(inside, 0), minlength=width)
            marked += full * max(bottom - top, 0)
            before = np.concatenate(([0.0], np.cumsum(marked)))
            found[row] = np.diff(np.interp(edges, np.arange(width + 1), before))
        return found / (height * width)

    def _pieces(self) -> tuple[_Pieces, NDArray[np.bool_]]:
        """Marked runs cut where columns end, and which columns between are marked all over."""
        height, width = self.size
        ends = np.cumsum(np.array(self.counts, np.int64))
        first, last = ends[0:-1:2], ends[1::2]
        first, last = first[last > first], last[last > first]
        begins, stops = first // height, (last - 1) // height
        alone = begins == stops
        heads = _Pieces(begins, first % height, np.where(alone, (last - 1) % height + 1, height))
        tails = _Pieces(stops, np.zeros_like(stops), (last - 1) % height + 1)
        steps = np.zeros(width + 1, np.int64)
        between = stops > begins + 1
        np.add.at(steps, begins[between] + 1, 1)
        np.add.at(steps, stops[between], -1)
        joined = (
            np.concatenate((head, tail[~alone])) for head, tail in zip(heads, tails, strict=True)
        )
        return _Pieces(*joined), np.cumsum(steps)[:-1] > 0


class _Pieces(NamedTuple):
    """Runs of marked pixels within a column, int64 [n] each; ``end`` is exclusive."""

    column: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
