r"""Sink scores: which positions of the prompt draw attention that says nothing of them.

By attention ("When Attention Sink Emerges"), from column sums over the prompt's rows:

    alpha_k(l, h) = 1 / (T - k) sum over rows i >= k of A_{i,k}
    Sink_k        = share of (layer, head) with alpha_k > epsilon

and by massive activations, from the residual x entering each layer ("Massive Activations"):

    phi(x) = max |x_d| / RMS(x) over the dimensions d in which the model's sinks show

with the layers in which phi makes a position a sink, its lifetime ("Secondary Attention Sinks":
lasting nearly as long as the model is deep, it is like the BOS; shorter, secondary; up to four
layers, noise). Uniform causal attention gives position 0 an alpha of H_T / T, .34 at T = 8, so
epsilon = .3 says nothing of texts that short; ``uniform`` is that number for the prompt at hand.

The answer's score is the number of sinks among the images' positions.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from saccade_interventions.model_facts import ModelFacts
from saccade_server.detectors.base import InLayers, TokenOf
from saccade_server.detectors.traced import Floats, Scores, Traced

LATE_BY = 15
"""Layers that a sink of the BOS's kind may lack of all, in a model of 32 or more; half of a
shallower one."""

NOISE = 4
"""Layers, of 32 or more, up to which a lifetime is noise."""


class Sinks(InLayers):
    """Positions of the prompt that are sinks, with their scores and lifetimes."""

    title: ClassVar[str] = "Sink scores"
    summary: ClassVar[str] = "Which positions of the prompt are sinks, how strong, in which layers."
    source: ClassVar[str] = (
        "Gu et al., When Attention Sink Emerges in Language Models, ICLR 2025; Sun et al., Massive "
        "Activations in Large Language Models, COLM 2024; Secondary Attention Sinks, "
        "arXiv 2512.22213"
    )
    unit: ClassVar[str] = "sinks in the image"
    suspect: ClassVar[Literal["low", "high"]] = "high"

    name: Literal["sinks"] = "sinks"

    epsilon: float = Field(0.3, gt=0, lt=1)
    """Column mean above which a head sinks into a position."""

    def trace(self, model: ModelFacts, token_of: TokenOf) -> dict[str, Any]:
        layers = self.layers_of(model)
        return {
            "columns": {"layers": layers, "rows": "prompt", "keys": "prompt", "reduce": []},
            "sinks": {"layers": layers},
        }

    def scores(self, traced: Traced) -> Scores:
        means = column_means(traced.of("columns"), traced.prompt)
        share = (means > self.epsilon).mean((0, 1))  # [position]
        massive = traced.of("sinks.scores")[:, : traced.prompt]  # [layer, position]
        found = traced.of("sinks.found")[:, : traced.prompt] > 0
        lifetimes = found.sum(0)
        at = np.flatnonzero((lifetimes > 0) | (share > 0))
        values = {
            "positions": at,
            "phi": massive.max(0)[at],
            "lifetime": lifetimes[at],
            "kind": [kind(int(lifetime), len(found)) for lifetime in lifetimes[at]],
            "sink_rate": share[at],
            "uniform": float(np.mean(1 / np.arange(1, traced.prompt + 1))),
        }
        in_images = sum(int((lifetimes[start:end] > 0).sum()) for start, end in traced.images)
        return Scores(float(in_images), values=values)


def column_means(sums: Floats, prompt: int) -> Floats:
    """alpha [layer, head, key] of column sums over all of a prompt's rows."""
    return sums[..., :prompt] / np.arange(prompt, 0, -1)


def kind(lifetime: int, layers: int) -> str:
    """What a position is that was a sink in ``lifetime`` of ``layers`` layers."""
    if lifetime == 0:
        return "attention only"
    if lifetime >= max(layers - LATE_BY, layers / 2):
        return "like BOS"
    return "secondary" if lifetime > min(NOISE, layers / 8) else "noise"
