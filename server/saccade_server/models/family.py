"""Which models are served, and how one is loaded or refused.

Refusal happens at load and names its reason: a model that would run but could give a request
wrong or neighbour-dependent numbers is not served at all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from saccade_server.models.attention import ATTENTION_NAME, register_attention
from saccade_server.models.base import ImageFeatures, Positions, ServedModel
from saccade_server.models.folder import (
    CONFIG,
    HUB_HELP,
    UnsupportedModelError,
    check_folder,
    in_short,
    is_local,
    named,
    read_json,
)
from saccade_server.models.llava import Llava
from saccade_server.models.probes import install_probes
from saccade_server.models.qwen_vl import Qwen3VL, Qwen25VL
from saccade_server.models.streams import install_streams
from saccade_server.models.text import Llama, Qwen3
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

SUPPORTED: dict[str, type[ServedModel]] = {
    cls.family: cls for cls in (Llama, Qwen3, Llava, Qwen25VL, Qwen3VL)
}
"""Model type, as in a model's config.json, to the class that serves it."""

SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
"""Fields of a text model's configuration that count something; the optional ones may be None."""

LLAVA_TEXT = ("llama",)
LLAVA_VISION = ("clip_vision_model", "siglip_vision_model")
LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

# dynamic and longrope choose their frequencies by the longest position of the *batch*: one long
# neighbour would change everybody's tokens.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})


def load_model(model: str, *, dtype: torch.dtype, device: torch.device) -> ServedModel:
    """Load a model folder (or a hub name, where the hub may be reached) and make it ready.

    Raises:
        UnsupportedModelError: it does not exist, or cannot be served.
    """
    config = load_config(model)
    if is_local(model):
        check_files(Path(model))
    register_attention()
    auto, attention = _how_to_load(config)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with _quiet():
        try:
            loaded, report = auto.from_pretrained(
                model,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are in the report
                output_loading_info=True,
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a folder's contents make its code do
            raise UnsupportedModelError(
                f"{model}: the model cannot be built from its files ({in_short(error)}); its "
                f"{CONFIG} and its weights may be damaged, or not belong together"
            ) from error
    if not is_local(model):
        check_files(Path(str(cached_file(model, CONFIG))).parent)
    check_report(model, report)
    loaded = loaded.to(device)
    check_finite(model, loaded)
    with named(model):
        return serve(loaded)


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


def serve(model: Any) -> ServedModel:
    """Make an already built transformers model ready, in place.

    Raises:
        UnsupportedModelError: it cannot be served.
    """
    check_config(model.config)
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} does not take a custom attention function"
        )
    register_attention()
    model.set_attn_implementation(_how_to_load(model.config)[1])
    model.eval().requires_grad_(False)
    install_streams(model)  # first, so that probes see edited residuals
    install_probes(model)
    return SUPPORTED[model.config.model_type](model)


def check_config(config: Any) -> None:
    """Refuse what is not known to be served right.

    Raises:
        UnsupportedModelError: with the reason.
    """
    kind = getattr(config, "model_type", None)
    if kind not in SUPPORTED:
        raise UnsupportedModelError(_unsupported(kind))
    text = config.get_text_config()
    for part in (config, text):
        if getattr(part, "quantization_config", None):
            raise UnsupportedModelError(
                "quantised checkpoints are not supported; use the model's original weights"
            )
    _check_sizes(text)
    if kind == "llava":
        _check_llava(config, text)
    _check_layers(text)
    _check_rope(text)


def _unsupported(kind: object) -> str:
    known = ", ".join(SUPPORTED)
    return (
        f"model type {kind!r} is not supported, and code that comes with a model is never run; "
        f"supported: {known}"
    )


def _check_sizes(text: Any) -> None:
    sizes = {name: getattr(text, name, None) for name in SIZES}
    for name, size in sizes.items():
        if size is not None and (not isinstance(size, int) or size < 1):
            raise UnsupportedModelError(
                f"{name} is {size!r} in its {CONFIG}, and must be 1 or more"
            )
    heads, kv_heads = text.num_attention_heads, sizes["num_key_value_heads"] or 1
    if heads % kv_heads:
        raise UnsupportedModelError(
            f"its {CONFIG} says {heads} query heads and {kv_heads} key heads, which do not divide "
            "them"
        )
    if text.hidden_act not in ACT2FN:
        raise UnsupportedModelError(
            f"its {CONFIG} names an unknown hidden_act, {text.hidden_act!r}"
        )


def _check_llava(config: Any, text: Any) -> None:
    vision = config.vision_config.model_type
    if text.model_type not in LLAVA_TEXT or vision not in LLAVA_VISION:
        raise UnsupportedModelError(
            f"LLaVA with {text.model_type!r} and {vision!r} is not supported; supported: "
            f"{', '.join(LLAVA_TEXT)} with {' or '.join(LLAVA_VISION)}"
        )


def _check_layers(text: Any) -> None:
    unknown = set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES
    if unknown:
        raise UnsupportedModelError(
            f"layers of type {', '.join(sorted(unknown))} have no paged cache"
        )


def _check_rope(text: Any) -> None:
    parameters = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    for rope in nested or [parameters]:
        kind = rope.get("rope_type", "default")
        if kind not in ROPE_TYPES:
            raise UnsupportedModelError(
                f"rotary embeddings of type {kind!r} are not supported: they are unknown, or "
                "depend on the longest sequence of a batch"
            )
        sections, head_dim = rope.get("mrope_section"), _head_dim(text)
        if sections is not None and 2 * sum(sections) != head_dim:
            raise UnsupportedModelError(
                f"its {CONFIG} divides heads of {head_dim} into rotary sections of {sections}, "
                "which are not half of them"
            )


def _head_dim(text: Any) -> Any:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _how_to_load(config: Any) -> tuple[Any, Any]:
    """The auto class, and the attention: ours in the text decoder only, not in a vision tower."""
    if getattr(config, "vision_config", None) is None:
        return AutoModelForCausalLM, ATTENTION_NAME
    return AutoModelForImageTextToText, {"text_config": ATTENTION_NAME}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report of a load: what is wrong is said in one sentence."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
