r"""Heads by how far back they look: what WAAD and FAI are averages over.

    d(l, h) = mean over the answer's rows t of sum over s of A_{t,s} (t - s)

The nearest-looking share of heads is the local set, the farthest-looking the global one. Row t is
the row at the position of answer token t. A last token that did not end the answer has none: it was
drawn, and nothing was computed behind it. Whether the paper ranks heads in each layer or in all
chosen layers together is not clear from it; here they are ranked together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from saccade_interventions.model_facts import ModelFacts
from saccade_server.detectors.base import InLayers, TokenOf
from saccade_server.detectors.traced import Floats, Traced

CHOSEN_LAYERS = 5

Share = Annotated[float, Field(gt=0, le=1)]


class OverReach(InLayers):
    """A detector that averages over heads which look near, or far."""

    heads: Share = 0.3
    """The share of the heads of all read layers that are averaged over."""

    def default_layers(self, model: ModelFacts) -> tuple[int, ...]:
        return middle_layers(model.layers)

    def trace(self, model: ModelFacts, token_of: TokenOf) -> dict[str, Any]:
        layers = self.layers_of(model)
        return {"attention": {"layers": layers, "keys": "all", "reduce": []}}


@dataclass(frozen=True)
class Rows:
    """Attention of the rows of answer tokens 0, 1, ..., [row, layer, head, key].

    ``distances`` [row, key] are positions from a key to a row, negative behind the row. ``keys``
    are positions relative to the answer's first token; ``tokens`` is the answer's length.
    """

    weights: Floats
    distances: NDArray[np.int64]
    keys: NDArray[np.int64]
    tokens: int

    @property
    def reach(self) -> Floats:
        """d [layer, head] in positions."""
        far: Floats = np.einsum("tlhk,tk->lh", self.weights, np.maximum(self.distances, 0))
        return far / len(self.weights)

    def mean_map(self, chosen: NDArray[np.bool_]) -> Floats:
        """The chosen heads' mean weights, [token, key]."""
        found: Floats = self.weights[:, chosen].mean(1)
        return found


def own_rows(traced: Traced) -> Rows | None:
    """The rows of the answer's tokens; None if no row was computed for any."""
    at = traced.along("attention", "row") - traced.prompt
    own = (at >= 0) & (at < traced.tokens)
    if not own.any():
        return None
    keys = traced.along("attention", "key") - traced.prompt
    distances = at[own][:, None] - keys[None]
    return Rows(traced.of("attention")[own], distances, keys, traced.tokens)


def chosen_heads(reach: Floats, share: float, *, nearest: bool) -> NDArray[np.bool_]:
    """The ``share`` of all heads that look nearest (or farthest), at least one, [layer, head]."""
    count = max(1, int(share * reach.size))
    order = np.argsort(reach, axis=None, kind="stable")
    chosen = np.zeros(reach.size, bool)
    chosen[order[:count] if nearest else order[-count:]] = True
    return chosen.reshape(reach.shape)


def listed(chosen: NDArray[np.bool_]) -> list[list[int]]:
    """The chosen pairs (layer, head), layers counted among those read."""
    return [[int(layer), int(head)] for layer, head in np.argwhere(chosen)]


def middle_layers(layers: int) -> tuple[int, ...]:
    """Five layers spread over the middle third of the model, fewer where it has fewer."""
    spread = np.linspace(layers / 3, 2 * layers / 3, CHOSEN_LAYERS)
    return tuple(sorted({min(int(layer), layers - 1) for layer in spread}))
