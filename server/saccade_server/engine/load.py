"""Make an engine core from a configuration: the model, its sink dimensions, its tables."""

from __future__ import annotations

import logging

import torch

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.invariance import check_machine
from saccade_server.engine.limits import ends_known
from saccade_server.engine.memory import out_of_memory_explained
from saccade_server.grammars.vocabulary import Vocabulary
from saccade_server.models.family import ServedModel, load_model
from saccade_server.models.fingerprint import fingerprint
from saccade_server.models.folder import UnsupportedModelError
from saccade_server.models.opening import opening
from saccade_server.models.prompt import PromptProcessor
from saccade_server.models.sinks import find_sink_dims
from saccade_server.models.token_bytes import token_bytes

logger = logging.getLogger(__name__)


def load_core(config: EngineConfig) -> EngineCore:
    """Load the model named in ``config``.

    Raises:
        UnsupportedModelError: the model cannot be served as asked; the message says why.
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
    if config.batch_invariant:
        check_machine(model)
    prompts = _prompts(config.model)
    first = None if prompts is None else opening(prompts)
    dims, identity = find_sink_dims(model, first), fingerprint(model)
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
    core = EngineCore(model, config, dims, identity, _vocabulary(model, prompts))
    logger.info(
        "key-value cache of %d tokens, sequences of up to %d; %s",
        core.info.cache_tokens,
        core.info.max_model_len,
        core.captured or "no CUDA graphs",
    )
    return core


def _prompts(model: str) -> PromptProcessor | None:
    """What makes prompts; None for a folder without a tokenizer or a template."""
    try:
        return PromptProcessor.load(model)
    except UnsupportedModelError:
        return None


def _vocabulary(model: ServedModel, prompts: PromptProcessor | None) -> Vocabulary | None:
    """The model's tokens as grammars need them; None if they, or the ends of answers, are unknown.

    Its making takes a moment, and its pages are shared by all grammars.
    """
    ends = ends_known(model)
    if prompts is None or not ends:
        return None
    size = model.vocab_size
    return Vocabulary.of(token_bytes(prompts, size), prompts.textless_token_ids, ends, size)
