"""Directions that separate two classes of activations, and how well they do.

``mean``: v = mean of the positive minus mean of the negative ones (CAA, Rimsky et al. 2023; ITI's
"center of mass", Li et al. 2023). ``pca``: the first principal direction around the midpoint of the
two means (RepE, Zou et al. 2023), towards the positive class and as long as v is along it. The
midpoint is taken and not the mean of pair differences: centring ordered differences would remove
just the direction that is looked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

FOLDS = 5

Method = Literal["mean", "pca"]


@dataclass(frozen=True)
class Direction:
    """``accuracy`` is that of a threshold on the projection, on examples not used to find it."""

    vector: torch.Tensor  # [size]
    accuracy: float


def find_direction(values: torch.Tensor, positive: torch.Tensor, method: Method) -> Direction:
    """The direction of ``values`` float32 [examples, size] with classes bool [examples]."""
    return Direction(_vector(values, positive, method), _held_out(values, positive, method))


def projection_std(values: torch.Tensor, vector: torch.Tensor) -> float:
    """Standard deviation of the projections on the unit vector (ITI's sigma)."""
    return float((values @ (vector / vector.norm())).std(correction=0))


def _vector(values: torch.Tensor, positive: torch.Tensor, method: Method) -> torch.Tensor:
    above, below = values[positive].mean(0), values[~positive].mean(0)
    difference: torch.Tensor = above - below
    if method == "mean":
        return difference
    centred = values - (above + below) / 2
    axis: torch.Tensor = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    return axis * (difference @ axis)


def _held_out(values: torch.Tensor, positive: torch.Tensor, method: Method) -> float:
    """Cross-validated accuracy; each class is dealt to the folds in turn, so all have both."""
    folds = min(FOLDS, int(positive.sum()), int((~positive).sum()))
    if folds < 2:
        return float("nan")
    fold = torch.empty(len(values), dtype=torch.long)
    for chosen in (positive, ~positive):
        fold[chosen] = torch.arange(int(chosen.sum())) % folds
    right = 0
    for index in range(folds):
        train, test = fold != index, fold == index
        vector = _vector(values[train], positive[train], method)
        projections = values @ vector
        above = projections[train & positive].mean()
        below = projections[train & ~positive].mean()
        said = projections[test] > (above + below) / 2
        right += int((said == positive[test]).sum())
    return right / len(values)
