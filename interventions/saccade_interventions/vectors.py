"""What methods with vectors share."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from saccade_kernels.residual import SiteKind

EXAMPLE_ID = "sha256:" + "0" * 64
"""Stands for an artifact in examples."""

Site = Literal["residual", "attention_output", "mlp_output"]
"""Where vectors act: on the residual between layers, or on what a part of a layer adds to it."""

SITES: tuple[Site, ...] = get_args(Site)
RESIDUAL: Site = "residual"


def kind_of(site: Site) -> SiteKind:
    """The site that a request names."""
    return SiteKind[site.upper()]


def layers_at(site: Site, layers: int) -> int:
    """How many numbers a site has in a model: residuals are one more than layers."""
    return layers + (site == RESIDUAL)


def place_of(site: Site | SiteKind, layer: int) -> str:
    """The place of this number, in words."""
    kind = site if isinstance(site, SiteKind) else kind_of(site)
    if kind is SiteKind.RESIDUAL:
        return f"residual {layer}"
    return f"{'MLP' if kind is SiteKind.MLP_OUTPUT else 'attention'} output of layer {layer}"


def unit_vectors(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors [n, size] divided by their norms; artifacts have no zero vectors."""
    normalised: NDArray[np.float64] = vectors / norms(vectors)[:, None]
    return normalised


def norms(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean norms of vectors [n, size]: [n]."""
    found: NDArray[np.float64] = np.linalg.norm(vectors, axis=1)
    return found
