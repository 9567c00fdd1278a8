"""Where the views of a prompt's images lie in it, and what of an image each of their tokens shows.

Coordinates are of the image *as the user sent it*: upright (turned as its file says), before
anything makes it smaller, stretches, pads, crops or cuts it into tiles. Plain data: who made it
reads processors, who uses it needs neither them nor pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

NOWHERE = -1
"""The position of a cell that the model was given no feature of."""


@dataclass(frozen=True)
class ImageView:
    """One view of an image: a run of tokens, one for each cell of a grid, row by row.

    ``span`` are all its tokens, end exclusive, newlines behind rows included. ``size`` is the width
    and height of the whole image in pixels. ``box`` is what the grid shows of it, in fractions of
    its sides; what lies outside of 0 to 1 is padding.
    """

    image: int  # counted from 0 in the prompt
    span: tuple[int, int]
    rows: int
    columns: int
    size: tuple[int, int]
    lead: int = 0  # tokens before the first cell's; -1: that is left out
    gap: int = 0  # tokens behind each row that are no cell's
    box: Box = WHOLE

    @property
    def positions(self) -> NDArray[np.int64]:
        """The token of every cell, int64 [rows, columns]; NOWHERE for a cell without one."""
        row, column = np.indices((self.rows, self.columns))
        features = self.lead + row * (self.columns + self.gap) + column
        return np.where(features < 0, NOWHERE, self.span[0] + features)

    @property
    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where cells begin and end: [columns + 1] across, [rows + 1] down, in fractions."""
        left, top, right, bottom = self.box
        return _steps(left, right, self.columns), _steps(top, bottom, self.rows)

    @property
    def boxes(self) -> NDArray[np.float64]:
        """The box of every cell in fractions of the image's sides, float64 [rows, columns, 4]."""
        across, down = self.edges
        sides = np.broadcast_arrays(across[:-1], down[:-1, None], across[1:], down[1:, None])
        return np.stack(sides, axis=-1)

    def of_cells(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Values [..., prompt length] of its cells, [..., rows, columns]; 0 where NOWHERE."""
        positions = self.positions
        return np.where(positions == NOWHERE, values.dtype.type(0), values[..., positions])


def _steps(first: float, last: float, count: int) -> NDArray[np.float64]:
    steps: NDArray[np.float64] = np.linspace(first, last, count + 1, dtype=np.float64)
    return steps
