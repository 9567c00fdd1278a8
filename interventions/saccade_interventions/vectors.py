"""What methods with vectors share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EXAMPLE_ID = "sha256:" + "0" * 64
"""Stands for an artifact in examples."""


def unit_vectors(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors [n, size] divided by their norms; artifacts have no zero vectors."""
    normalised: NDArray[np.float64] = vectors / norms(vectors)[:, None]
    return normalised


def norms(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean norms of vectors [n, size]: [n]."""
    found: NDArray[np.float64] = np.linalg.norm(vectors, axis=1)
    return found
