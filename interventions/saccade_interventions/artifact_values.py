"""What the numbers of an artifact may be, kind by kind, once its tensors have been read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade_kernels.residual import RESIDUAL_EDITS

LARGEST = 1e9
"""Of a value; float32 arithmetic on vectors must not overflow."""
SMALLEST_NORM = 1e-9
"""Of a vector; a shorter one has no direction to speak of."""
MOST_RANK = RESIDUAL_EDITS
"""Of a map in one layer."""
RANKED = ("subspaces", "low_rank")
"""Kinds with several vectors a layer."""
NEARLY = 1e-4
"""Of 1, of a sum of weights; and of a covariance's largest entry, how far it is from symmetric."""
FLATTEST = 1e-9
"""Least variance in any direction, as a share of the largest entry."""
LEAST_ANGLE = 1e-4
"""Least singular value of a subspace's unit vectors; below it rounding decides what they span."""

Tensors = Mapping[str, NDArray[Any]]


def check_values(kind: str, tensors: Tensors) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        ValueError: the message says which, in words for a client.
    """
    for name, values in tensors.items():
        if values.dtype.kind == "f":
            if not np.isfinite(values).all() or np.abs(values).max() > LARGEST:
                raise ValueError(f"{name}: a value is not finite, or above {LARGEST:g}")
        elif values.min() < 0:
            raise ValueError(f"{name}: a number is negative")
        elif kind not in RANKED and len(np.unique(_keys(values))) != len(values):
            raise ValueError(f"{name}: the same entry occurs twice")
    for name in ("vectors", "read", "write"):
        if name in tensors:
            _check_norms(name, tensors[name])
    if "sigma" in tensors and tensors["sigma"].min() < 0:
        raise ValueError("sigma: a number is negative")
    if kind in RANKED:
        _check_ranks(tensors["layers"])
    if kind == "subspaces":
        _check_independent(tensors)
    if kind == "diagonal":
        _check_changes(tensors)
    if kind == "density":
        _check_density(tensors)


def rows_of(layers: NDArray[Any]) -> dict[int, list[int]]:
    """Which rows of an artifact belong to each layer, layers ascending."""
    found: dict[int, list[int]] = {}
    for row, layer in enumerate(layers.tolist()):
        found.setdefault(layer, []).append(row)
    return dict(sorted(found.items()))


def _check_norms(name: str, vectors: NDArray[Any]) -> None:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if norms.min() < SMALLEST_NORM:
        raise ValueError(f"{name}: vector {int(norms.argmin())} is zero")


def _check_ranks(layers: NDArray[Any]) -> None:
    layer, rank = Counter(layers.tolist()).most_common(1)[0]
    if rank > MOST_RANK:
        raise ValueError(f"layers: {layer} occurs {rank} times; a map has a rank of {MOST_RANK}")


def _check_independent(tensors: Tensors) -> None:
    rows = rows_of(tensors["layers"])
    for rank in range(2, MOST_RANK + 1):  # all layers of a rank at once: a file may have many
        layers = [layer for layer, found in rows.items() if len(found) == rank]
        if not layers:
            continue
        vectors = tensors["vectors"][[rows[layer] for layer in layers]].astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        least = np.linalg.eigvalsh(vectors @ vectors.swapaxes(-1, -2))[:, 0]
        if least.min() < LEAST_ANGLE**2:
            layer = layers[int(least.argmin())]
            raise ValueError(f"vectors: those of layer {layer} depend on each other")


def _check_changes(tensors: Tensors) -> None:
    changes = (tensors["scale"] != 1).any(1)
    if "shift" in tensors:
        changes |= tensors["shift"].any(1)
    if not changes.all():
        raise ValueError(f"scale: entry {int(changes.argmin())} changes nothing")


def _check_density(tensors: Tensors) -> None:
    weights, scale = tensors["weights"], tensors["scale"]
    if weights.min() <= 0 or abs(float(weights.sum(dtype=np.float64)) - 1) > NEARLY:
        raise ValueError("weights: they are above 0 and add up to 1")
    if scale.min() <= 0:
        raise ValueError("scale: a number is not above 0")
    covariances = tensors["covariances"].astype(np.float64)
    largest = np.abs(covariances).max((1, 2))
    uneven = np.abs(covariances - covariances.swapaxes(1, 2)).max((1, 2)) > NEARLY * largest
    if uneven.any() or (np.linalg.eigvalsh(covariances)[:, 0] <= FLATTEST * largest).any():
        raise ValueError("covariances: one is not symmetric and positive definite")


def _keys(values: NDArray[Any]) -> NDArray[Any]:
    """One int64 for each entry, [n] or a pair [n, 2], none of them negative."""
    wide = values.astype(np.int64)
    return wide if wide.ndim == 1 else wide[:, 0] << 32 | wide[:, 1]
