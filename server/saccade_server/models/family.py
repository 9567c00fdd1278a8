"""Which models are served, and how one is loaded or refused.

Refusal happens at load and names its reason: a model that would run but could give a request
wrong or neighbour-dependent numbers is not served at all.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from saccade_server.models.base import ImageFeatures, Positions, ServedModel
from saccade_server.models.config_checks import check_gpu, check_quantisation, check_sizes
from saccade_server.models.folder import (
    CONFIG,
    HUB_HELP,
    HUB_WEIGHTS_HELP,
    UnsupportedModelError,
    check_folder,
    in_short,
    is_local,
    named,
    read_json,
)
from saccade_server.models.idefics3 import Idefics3, SmolVLM
from saccade_server.models.internvl import InternVL
from saccade_server.models.llava import Llava
from saccade_server.models.llava_next import LlavaNext
from saccade_server.models.qwen_vl import Qwen2VL, Qwen3VL, Qwen25VL
from saccade_server.models.text import Gemma3, Llama, Mistral, Qwen2, Qwen3
from saccade_server.models.weights import check_files, check_finite, check_report

__all__ = [
    "SUPPORTED",
    "ImageFeatures",
    "Positions",
    "ServedModel",
    "UnsupportedModelError",
    "check_config",
    "load_config",
    "load_model",
    "serve",
]

logger = logging.getLogger(__name__)

SUPPORTED: dict[str, type[ServedModel]] = {
    cls.family: cls
    for cls in (
        *(Llama, Mistral, Qwen2, Qwen3, Gemma3),
        *(Llava, LlavaNext, Qwen2VL, Qwen25VL, Qwen3VL, InternVL, Idefics3, SmolVLM),
    )
}
"""Model type, as in a model's config.json, to the class that serves it."""


def load_model(model: str, *, dtype: torch.dtype, device: torch.device) -> ServedModel:
    """Load a model folder (or a hub name, where the hub may be reached) and make it ready.

    Raises:
        UnsupportedModelError: it does not exist, or cannot be served.
    """
    config = load_config(model)
    if device.type == "cuda":
        with named(model):
            check_gpu(SUPPORTED[config.model_type].describe(config).head_dim, dtype)
    if is_local(model):
        check_files(Path(model))
    if getattr(config, "auto_map", None):
        logger.warning("%s: its own code is not run; it is served as %s", model, config.model_type)
    has_images = getattr(config, "vision_config", None) is not None
    auto: Any = AutoModelForImageTextToText if has_images else AutoModelForCausalLM
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with _quiet():
        try:
            loaded, report = auto.from_pretrained(
                model,
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are in the report
                output_loading_info=True,
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a folder's contents make its code do
            if isinstance(error, OSError) and not is_local(model):
                raise UnsupportedModelError(f"{model}: {HUB_WEIGHTS_HELP}") from error
            raise UnsupportedModelError(
                f"{model}: the model cannot be built from its files ({in_short(error)}); its "
                f"{CONFIG} and its weights may be damaged, or not belong together"
            ) from error
    if not is_local(model):
        check_files(Path(str(cached_file(model, CONFIG))).parent)
    check_report(model, report)
    with named(model):
        served = serve(loaded, device)
    check_finite(model, served)
    return served


def load_config(model: str) -> Any:
    """Read a model's configuration, and check it before any weight is read.

    Raises:
        UnsupportedModelError: as :func:`load_model`.
    """
    local = is_local(model)
    if local:
        check_folder(Path(model))
        kind = read_json(Path(model) / CONFIG).get("model_type")
        if kind not in SUPPORTED:
            raise UnsupportedModelError(f"{model}: {_unsupported(kind)}")
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # fields are checked by validators of many kinds
        if not local:
            raise UnsupportedModelError(f"{model}: {HUB_HELP}") from error
        raise UnsupportedModelError(
            f"{model}: its {CONFIG} cannot be used ({in_short(error)}); correct it, or download "
            "it again"
        ) from error
    with named(model):
        check_config(config)
    return config


def serve(model: Any, device: torch.device | None = None) -> ServedModel:
    """Serve an already built transformers model, whose layers' weights are taken out of it.

    Args:
        device: where to; None: where it is.

    Raises:
        UnsupportedModelError: it cannot be served.
    """
    check_config(model.config)
    model.eval().requires_grad_(False)
    return SUPPORTED[model.config.model_type](model, device or model.device)


def check_config(config: Any) -> None:
    """Refuse what is not known to be served right.

    Raises:
        UnsupportedModelError: with the reason.
    """
    kind = getattr(config, "model_type", None)
    if kind not in SUPPORTED:
        raise UnsupportedModelError(_unsupported(kind))
    text = config.get_text_config()
    check_quantisation(config, text, getattr(config, "vision_config", None))
    check_sizes(text)
    SUPPORTED[kind].describe(config)


def _unsupported(kind: object) -> str:
    known = ", ".join(SUPPORTED)
    return (
        f"model type {kind!r} is not supported, and code that comes with a model is never run; "
        f"supported: {known}"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report of a load: what is wrong is said in one sentence."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
