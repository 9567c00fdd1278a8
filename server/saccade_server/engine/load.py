"""Make an engine core from a configuration: the model, its sink dimensions, its tables."""

from __future__ import annotations

import logging

import torch

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.models.family import load_model
from saccade_server.models.sinks import find_sink_dims

logger = logging.getLogger(__name__)


def load_core(config: EngineConfig) -> EngineCore:
    """Load the model named in ``config``.

    Raises:
        UnsupportedModelError: the model cannot be served; the message says why.
        ValueError: a limit in ``config`` does not fit the model.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dtype = getattr(torch, config.dtype)
    model = load_model(config.model, dtype=dtype, device=torch.device(config.device))
    dims = find_sink_dims(model)
    logger.info(
        "loaded %s: %s, %d layers, %d heads, sink dimensions %s",
        config.model,
        model.family,
        model.layers,
        model.heads,
        list(dims) or "none found",
    )
    return EngineCore(model, config, dims)
