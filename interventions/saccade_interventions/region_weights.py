"""Weights over regions: a grid of factors that fills a part of an image, or a row over tokens.

A factor of 1 leaves a key's attention as it is, 0 takes it away. Whatever has fewer or more cells
than there are factors gets the mean of those that lie over it, by area.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from saccade_interventions.image_views import WHOLE, Box, ImageView

LARGEST_WEIGHT = 1e4
MOST_CELLS_A_SIDE = 128
"""Of a grid; a language model is shown no image in more tokens a side."""

MOST_WEIGHTS = 4096

ROUNDING = 1e-12

Weight = Annotated[float, Field(ge=0, le=LARGEST_WEIGHT)]


def _even(grid: list[list[float]]) -> list[list[float]]:
    if len({len(row) for row in grid}) > 1:
        raise PydanticCustomError("grid", "the rows of a grid have equally many weights")
    return grid


Weights = Annotated[list[Weight], Field(min_length=1, max_length=MOST_WEIGHTS)]
"""One after the other over a region's tokens."""

WeightGrid = Annotated[
    list[Annotated[list[Weight], Field(min_length=1, max_length=MOST_CELLS_A_SIDE)]],
    Field(min_length=1, max_length=MOST_CELLS_A_SIDE),
    AfterValidator(_even),
]
"""Rows from top to bottom, each from left to right; of equal cells that fill a box."""


def over_tokens(weights: list[float], count: int) -> NDArray[np.float64]:
    """What each of ``count`` tokens gets of a row of weights that is laid over all of them."""
    shares = _shares(np.linspace(0, 1, count + 1), 0.0, 1.0, len(weights))
    return _means(shares @ np.array(weights), shares.sum(1))


def over_cells(grid: list[list[float]], box: Box, view: ImageView) -> NDArray[np.float64]:
    """What each cell of a view gets of a grid that fills a box, in fractions of the image.

    Returns:
        [rows, columns]: means over what of a cell lies in the box and in the image; NaN where
        nothing does.
    """
    left, top, right, bottom = box
    across, down = (np.clip(edges, WHOLE[0], WHOLE[2]) for edges in view.edges)
    columns = _shares(across, left, right, len(grid[0]))
    rows = _shares(down, top, bottom, len(grid))
    areas = rows.sum(1)[:, None] * columns.sum(1)
    with np.errstate(invalid="ignore"):
        return _means(rows @ np.array(grid) @ columns.T, areas)


def _means(sums: NDArray[np.float64], areas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over areas; those of ones are 1, which is to change nothing."""
    means = sums / areas
    return np.where(np.abs(means - 1) < ROUNDING, 1.0, means)


def _shares(
    edges: NDArray[np.float64], first: float, last: float, count: int
) -> NDArray[np.float64]:
    """How much of each interval [n] between edges [n + 1] lies in each of ``count`` parts."""
    parts = np.linspace(first, last, count + 1)
    ends = np.minimum(edges[1:, None], parts[None, 1:])
    begins = np.maximum(edges[:-1, None], parts[None, :-1])
    return np.asarray(np.maximum(ends - begins, 0))
