"""Maps of what a site holds, as artifacts have them, and the residual edits that compute them.

    subspaces   h' = h - c P h, P the projection on the span of a layer's vectors
    low_rank    h' = h + c sum of (read . h + shift) write
    diagonal    h' = h + c ((scale - 1) h + shift), elementwise

c is a coefficient: 1 is the map itself, 0 the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.artifacts import Artifact
from saccade_interventions.edits import Vectors
from saccade_interventions.vectors import norms

Terms = list[dict[str, Any]]
"""Fields of the residual edits of one layer that say what they do, rows included."""


@dataclass(frozen=True)
class ResidualMaps:
    """Vectors [n, hidden], and what is done with their rows, by layer."""

    vectors: Vectors
    terms: Mapping[int, Terms]


def maps_of(found: Artifact, rows: Mapping[int, Sequence[int]], coefficient: float) -> ResidualMaps:
    """The maps of an artifact of one of these kinds, for some of its layers and their rows."""
    return _MAKERS[found.kind](found.tensors, rows, coefficient)


def _subspaces(
    tensors: Mapping[str, NDArray[Any]], rows: Mapping[int, Sequence[int]], coefficient: float
) -> ResidualMaps:
    """Orthonormal vectors of a span: their projections are independent of each other."""
    bases: list[NDArray[np.float64]] = []
    terms: dict[int, Terms] = {}
    for layer, at in rows.items():
        vectors = tensors["vectors"][list(at)].astype(np.float64)
        first = sum(len(basis) for basis in bases)
        bases.append(np.linalg.qr((vectors / norms(vectors)[:, None]).T)[0].T)
        terms[layer] = [{"row": first + i, "scale": 1.0 - coefficient} for i in range(len(at))]
    return _packed(np.concatenate(bases), terms)


def _low_rank(
    tensors: Mapping[str, NDArray[Any]], rows: Mapping[int, Sequence[int]], coefficient: float
) -> ResidualMaps:
    chosen = [row for at in rows.values() for row in at]
    shift = tensors.get("shift", np.zeros(len(tensors["layers"])))
    terms: dict[int, Terms] = {}
    place = 0
    for layer, at in rows.items():
        terms[layer] = [
            {
                "row": place + i,
                "onto": len(chosen) + place + i,
                "scale": 1.0 + coefficient,
                "shift": coefficient * float(shift[row]),
            }
            for i, row in enumerate(at)
        ]
        place += len(at)
    vectors = np.concatenate([tensors["read"][chosen], tensors["write"][chosen]])
    return _packed(vectors, terms)


def _diagonal(
    tensors: Mapping[str, NDArray[Any]], rows: Mapping[int, Sequence[int]], coefficient: float
) -> ResidualMaps:
    """The shift is added along its direction; neither is an edit where it changes nothing."""
    vectors: list[NDArray[np.float64]] = []
    terms: dict[int, Terms] = {}
    for layer, (row,) in rows.items():
        terms[layer] = []
        factor = tensors["scale"][row].astype(np.float64) - 1
        if factor.any():
            terms[layer].append({"row": len(vectors), "scale": 1.0 + coefficient, "diagonal": True})
            vectors.append(factor)
        shift = tensors["shift"][row].astype(np.float64) if "shift" in tensors else np.zeros(1)
        length = float(np.linalg.norm(shift))
        if length:
            terms[layer].append({"row": len(vectors), "shift": coefficient * length})
            vectors.append(shift / length)
    return _packed(np.stack(vectors), terms)


def _packed(vectors: NDArray[Any], terms: Mapping[int, Terms]) -> ResidualMaps:
    return ResidualMaps(Vectors.pack(vectors.astype(np.float32)), terms)


_MAKERS = {"subspaces": _subspaces, "low_rank": _low_rank, "diagonal": _diagonal}
