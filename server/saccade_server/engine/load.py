"""Make an engine core from a configuration: the model, its sink dimensions, its tables."""

from __future__ import annotations

import logging

import torch

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.memory import out_of_memory_explained
from saccade_server.models.family import load_model
from saccade_server.models.fingerprint import fingerprint
from saccade_server.models.opening import first_token
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
    logger.info("loading the weights of %s", config.model)
    dtype, device = getattr(torch, config.dtype), torch.device(config.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # or pinned memory would wake the first GPU too
    with out_of_memory_explained("loading the weights"):
        model = load_model(config.model, dtype=dtype, device=device)
    dims, identity = find_sink_dims(model, first_token(config.model)), fingerprint(model)
    logger.info(
        "loaded %s: %s, %d layers, %d heads, sink dimensions %s, fingerprint %s",
        config.model,
        model.family,
        model.layers,
        model.heads,
        list(dims) or "none found",
        identity,
    )
    logger.info("preparing to serve; on a GPU kernels are compiled and steps captured first")
    core = EngineCore(model, config, dims, identity)
    logger.info(
        "key-value cache of %d tokens, sequences of up to %d; %s",
        core.info.cache_tokens,
        core.info.max_model_len,
        core.captured or "no CUDA graphs",
    )
    return core
