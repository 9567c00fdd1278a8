"""``calibrate sinks``: which residual dimensions carry the massive activations of sink tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saccade_kernels.sinks import RMS_EPSILON
from saccade_kernels.thresholds import default_threshold
from saccade_server.models.base import ServedModel
from saccade_server.models.sinks import find_sink_dims, first_residuals

PROMPTS = 20
LENGTH = 24


@dataclass(frozen=True)
class FoundSinks:
    """``scores``: by layer, |x| / RMS(x) of the first token in each of ``dims``, the median."""

    dims: tuple[int, ...]
    threshold: float
    scores: dict[int, tuple[float, ...]]


def find_sinks(model: ServedModel, first: int | None = None) -> FoundSinks:
    """What the server itself would use, with the figures behind it.

    ``first``: the token that chats begin with, if it is known.
    """
    dims = find_sink_dims(model, first)
    residuals = first_residuals(model, range(model.layers), PROMPTS, LENGTH, first)
    rms = residuals.square().mean(-1, keepdim=True).add(RMS_EPSILON).sqrt()
    scores = (residuals.abs() / rms)[..., list(dims)].median(1).values  # [layers, dims]
    by_layer = {layer: tuple(row) for layer, row in enumerate(torch.Tensor.tolist(scores))}
    return FoundSinks(dims, default_threshold(model.hidden_size), by_layer)
