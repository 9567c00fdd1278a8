"""Run-length masks: areas against the pixels written out, and what is refused unallocated."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from saccade_interventions.image_views import ImageView
from saccade_interventions.masks import MOST_RUNS, Mask


def mask_of(pixels: np.ndarray) -> Mask:
    """COCO's run lengths of bool [height, width], by a loop."""
    counts, last = [0], False
    for pixel in pixels.T.ravel().tolist():
        if pixel != last:
            counts.append(0)
            last = pixel
        counts[-1] += 1
    return Mask(size=list(pixels.shape), counts=counts)


def painted(pixels: np.ndarray, across: np.ndarray, down: np.ndarray, fine: int = 12) -> np.ndarray:
    """Shares of the whole that are marked in each cell, where edges lie on 1 / fine of a pixel."""
    large = np.kron(pixels, np.ones((fine, fine)))
    height, width = large.shape
    columns = np.round(np.clip(across, 0, 1) * width).astype(int)
    rows = np.round(np.clip(down, 0, 1) * height).astype(int)
    return np.array(
        [
            [large[top:bottom, left:right].sum() for left, right in pairwise(columns)]
            for top, bottom in pairwise(rows)
        ]
    ) / (height * width)


@pytest.mark.parametrize("shape", [(7, 5), (1, 9), (9, 1), (8, 8)])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97, 1.0])
def test_areas_are_those_of_the_pixels(shape: tuple[int, int], share: float) -> None:
    random = np.random.default_rng([*shape, int(100 * share)])
    pixels = random.random(shape) < share
    pixels[-1, -1] = True
    mask = mask_of(pixels)
    for rows, columns in ((1, 1), (2, 3), (4, 4), (3, 6)):
        across, down = np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1)
        found = mask.areas(across, down)
        np.testing.assert_allclose(found, painted(pixels, across, down), atol=1e-12)
        assert found.sum() == pytest.approx(mask.marked / pixels.size)


def test_what_lies_outside_of_the_image_is_not_marked() -> None:
    view = ImageView(0, (0, 16), 4, 4, (8, 6), box=(-0.5, 0.25, 1.5, 1.25))
    whole = Mask(size=[6, 8], counts=[0, 48])
    across, down = view.edges
    found = whole.areas(across, down)
    assert found[:, [0, 3]].tolist() == [[0, 0]] * 4
    assert found[3].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(found[:3, 1:3], 0.125)


def test_runs_of_length_0_are_runs() -> None:
    mask = Mask(size=[2, 3], counts=[0, 1, 0, 1, 4, 0])
    found = mask.areas(np.linspace(0, 1, 4), np.linspace(0, 1, 3))
    np.testing.assert_allclose(found * 6, [[1, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    "fields",
    [
        {"size": [4, 4], "counts": [8, 9]},
        {"size": [4, 4], "counts": [16, 0]},
        {"size": [4, 4], "counts": [16]},
        {"size": [4], "counts": [1, 3]},
        {"size": [0, 4], "counts": [0, 0]},
        {"size": [4, 4], "counts": [-4, 20]},
        {"size": [4, 4], "counts": [8.0, 8]},
        {"size": [4, 4], "counts": [0, 16], "order": "C"},
        {"size": [4, 4], "counts": [0, 1] * MOST_RUNS},
        {"size": [70_000, 1], "counts": [0, 70_000]},
        {"size": [4, 4], "counts": [10**30, 1]},
    ],
)
def test_hostile_masks_are_refused(fields: dict) -> None:
    with pytest.raises(ValidationError):
        Mask.model_validate(fields)


def test_a_mask_of_billions_of_pixels_costs_nothing() -> None:
    side = 65_535
    tracemalloc.start()
    mask = Mask(size=[side, side], counts=[side, side * side - side])
    found = mask.areas(np.linspace(0, 1, 65), np.linspace(0, 1, 65))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert found.sum() == pytest.approx(1 - 1 / side)
