"""The pixels that every cell of a view is made of, by formulas of the tests."""

import numpy as np

from saccade_interventions.image_views import ImageView
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.requests.prepared import described


def grids(views: tuple[PreparedImage, ...]) -> tuple[ImageView, ...]:
    """The same views in the words of the interventions."""
    return described(RenderedPrompt((), "", (), views)).views


def cell_pixels(view: PreparedImage) -> np.ndarray:
    """The pixels of every cell, [rows, columns, 3, values], of a processor's views."""
    cells, pixels = view.cells, view.pixels
    assert cells is not None
    if pixels.ndim == 2:  # patches in squares of 2 x 2, [square row, square column, patch]
        return (
            pixels.reshape(cells.rows, cells.columns, 4, 3, -1)
            .transpose(0, 1, 3, 2, 4)
            .reshape(cells.rows, cells.columns, 3, -1)
        )
    if pixels.ndim == 5:
        down, across, _, height, width = pixels.shape
        pixels = pixels.transpose(2, 0, 3, 1, 4).reshape(3, down * height, across * width)
        patch = height // 3
        top = (pixels.shape[1] - cells.rows * patch) // 2
        left = (pixels.shape[2] - cells.columns * patch) // 2
        pixels = pixels[:, top : top + cells.rows * patch, left : left + cells.columns * patch]
    _, height, width = pixels.shape
    split = pixels.reshape(
        3, cells.rows, height // cells.rows, cells.columns, width // cells.columns
    )
    return split.transpose(1, 3, 0, 2, 4).reshape(cells.rows, cells.columns, 3, -1)
