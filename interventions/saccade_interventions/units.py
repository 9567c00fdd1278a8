"""Unit vectors of an artifact, and what heads are shifted by, made once for many requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.artifacts import Artifact
from saccade_interventions.edits import Vectors
from saccade_interventions.kept import Kept
from saccade_interventions.vectors import norms

MOST_BYTES = 32 * 2**20
"""Of each kind that is kept."""


@dataclass(frozen=True)
class Units:
    """Vectors of length 1, float32, and the lengths that they had."""

    vectors: Vectors
    lengths: tuple[float, ...]


_UNITS = Kept[Units](MOST_BYTES, lambda found: len(found.vectors.data))
_SHIFTS = Kept[Vectors](MOST_BYTES, lambda found: len(found.data))
_DIRECTIONS = Kept[NDArray[np.float64]](MOST_BYTES, lambda found: found.nbytes)


def units_of(found: Artifact, rows: Sequence[int]) -> Units:
    """Of these rows of an artifact of kind "vectors", in their order."""

    def made() -> Units:
        stored = found.tensors["vectors"][list(rows)].astype(np.float64)
        lengths = norms(stored)
        stored /= lengths[:, None]
        return Units(Vectors.pack(stored.astype(np.float32)), tuple(lengths.tolist()))

    return _UNITS.get((found.digest, tuple(rows)), made)


def shifts_of(
    found: Artifact, unit: str, alpha: float, make: Callable[[], NDArray[np.float64]]
) -> Vectors:
    """alpha times the directions [heads, head_dim] that ``make`` finds for an artifact of kind
    "head_vectors" in this unit.
    """

    def made() -> Vectors:
        directions = _DIRECTIONS.get((found.digest, unit), make)
        return Vectors.pack((alpha * directions).astype(np.float32))

    return _SHIFTS.get((found.digest, unit, alpha), made)
