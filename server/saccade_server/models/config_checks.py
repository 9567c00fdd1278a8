"""Which configurations of a family are not served right: sizes, layers, rotary embeddings, parts.

Every check raises UnsupportedModelError with the reason, without the model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.activations import ACT2FN

from saccade_server.models.folder import CONFIG, UnsupportedModelError

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


def check_sizes(text: Any) -> None:
    """Refuse sizes of which no model can be built."""
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


def check_llava(config: Any, text: Any) -> None:
    """Refuse parts that no LLaVA served here is made of."""
    vision = config.vision_config.model_type
    if text.model_type not in LLAVA_TEXT or vision not in LLAVA_VISION:
        raise UnsupportedModelError(
            f"LLaVA with {text.model_type!r} and {vision!r} is not supported; supported: "
            f"{', '.join(LLAVA_TEXT)} with {' or '.join(LLAVA_VISION)}"
        )


def check_layers(text: Any) -> None:
    """Refuse layers that are no attention."""
    unknown = set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES
    if unknown:
        raise UnsupportedModelError(
            f"layers of type {', '.join(sorted(unknown))} have no paged cache"
        )


def check_rope(text: Any) -> None:
    """Refuse rotary embeddings that depend on neighbours, or do not fit the heads."""
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
