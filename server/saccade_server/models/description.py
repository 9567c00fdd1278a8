"""From a configuration to the description of its decoder, or a refusal that names the field.

What a family's configurations leave unsaid is its :class:`Traits`; everything else is read from
fields. A field that would change the computation and has no place in the description is refused
with its value, whether or not transformers would read it: a model that means something by it would
be served wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from saccade_kernels.layers import ACTIVATIONS
from saccade_server.models.folder import CONFIG, UnsupportedModelError, in_short
from saccade_server.models.spec import Biases, DecoderSpec, LayerSpec, Rotary

FULL, SLIDING = "full_attention", "sliding_attention"

# longrope chooses its frequencies by the longest position of the *batch*: one long neighbour would
# change everybody's tokens. So does dynamic, but behind max_position_embeddings, where none is.
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")

ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor"),
    *("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("mrope_section", "mrope_interleaved"),
}
"""What rotary parameters may say: something to one of the types above, nothing to the others."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "qk_layer_norms": (False,),
    "sliding_window": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "use_bidirectional_attention": (False,),
    "attention_chunk_size": (),
    "clip_qkv": (),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0, 1),
    "num_kv_shared_layers": (0,),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "attention_multiplier": (),
    "logits_scaling": (1.0,),
    "scale_emb": (1.0,),
    "scale_depth": (1.0,),
}
"""Fields of relatives of the families, and the values beside None at which they mean nothing."""


@dataclass(frozen=True)
class Traits:
    """What a family's layers have, beyond what the fields of its configurations say.

    A bias is a truth value, or the name of the field that says it. ``windows``: of no layer, of
    those whose ``layer_types`` entry says so, or of all when ``sliding_window`` is set.
    ``sections``: how many pairs of dimensions turn by each of three axes where the configuration
    does not say; none: there is one axis. They lie one after another, or ``interleaved``.
    """

    qkv_bias: bool | str = "attention_bias"
    output_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = False
    windows: Literal["none", "typed", "all"] = "none"
    sections: tuple[int, ...] = ()
    interleaved: bool = False
    head_norms: bool = False
    plus_one: bool = False
    post_norms: bool = False
    scaled_embeddings: bool = False
    activation: str = "hidden_act"
    scalar: str | None = None  # the field whose inverse root scales scores; None: head_dim's does
    softcap: str | None = None

    @property
    def reads(self) -> frozenset[str]:
        """The fields of :data:`NEUTRAL` that the family gives a meaning."""
        windows = None if self.windows == "none" else "sliding_window"
        named = (self.qkv_bias, self.output_bias, self.mlp_bias, self.scalar, self.softcap, windows)
        return frozenset(name for name in named if isinstance(name, str))

    def says(self, field: str, value: object) -> bool:
        """True if a field says what all layers of the family have anyway."""
        return field == "attention_bias" and value is self.qkv_bias


def describe(text: Any, traits: Traits) -> DecoderSpec:
    """Describe the decoder of a text configuration whose sizes have been checked.

    Raises:
        UnsupportedModelError: it says something that no description can.
    """
    _check_neutral(text, traits)
    heads: int = text.num_attention_heads
    head_dim: int = getattr(text, "head_dim", None) or text.hidden_size // heads
    if head_dim % 2:
        raise refused("head_dim", head_dim, "halves of heads turn against each other: it is even")
    layers, rotaries = _layers(text, traits, head_dim)
    return DecoderSpec(
        layers=layers,
        rotaries=rotaries,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        epsilon=_number(text, "rms_norm_eps"),
        activation=_activation(text, traits.activation),
        scale=(_number(text, traits.scalar) if traits.scalar else head_dim) ** -0.5,
        softcap=_number(text, traits.softcap, 0.0) if traits.softcap else 0.0,
        biases=Biases(
            *(_flag(text, bias) for bias in (traits.qkv_bias, traits.output_bias, traits.mlp_bias))
        ),
        plus_one=traits.plus_one,
        head_norms=traits.head_norms,
        post_norms=traits.post_norms,
        embedding_scale=text.hidden_size**0.5 if traits.scaled_embeddings else 1.0,
    )


def refused(field: str, value: object, why: str) -> UnsupportedModelError:
    """A refusal of a field's value."""
    return UnsupportedModelError(f"{field} is {value!r} in its {CONFIG}; {why}")


def _check_neutral(text: Any, traits: Traits) -> None:
    for field, neutral in NEUTRAL.items():
        value = getattr(text, field, None)
        if field in traits.reads or value is None or value in neutral:
            continue
        if not traits.says(field, value):
            raise refused(field, value, f"models of type {text.model_type!r} are served without it")


def _number(text: Any, field: str, default: float | None = None) -> float:
    value = getattr(text, field, None)
    if value is None and default is not None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise refused(field, value, "it must be a number above 0")
    return float(value)


def _flag(text: Any, bias: bool | str) -> bool:
    return bias if isinstance(bias, bool) else bool(getattr(text, bias, False))


def _activation(text: Any, field: str) -> str:
    name = getattr(text, field, None)
    if name not in ACTIVATIONS:
        raise refused(field, name, f"the activations that are served: {', '.join(ACTIVATIONS)}")
    return str(name)


def _layers(
    text: Any, traits: Traits, head_dim: int
) -> tuple[tuple[LayerSpec, ...], tuple[Rotary, ...]]:
    """Windows and rotary embeddings, both by the kinds of layers."""
    count: int = text.num_hidden_layers
    kinds = _kinds(text, traits, count)
    window = getattr(text, "sliding_window", None)
    if SLIDING in kinds and (not isinstance(window, int) or window < 1):
        raise refused("sliding_window", window, "layers of sliding attention need its size")
    size = window if isinstance(window, int) else 0
    rope = getattr(text, "rope_parameters", None) or {}
    by_kind = bool(rope) and all(isinstance(value, Mapping) for value in rope.values())
    of_kind = {
        kind: _rotary(text, traits, head_dim, kind if by_kind else None)
        for kind in sorted({*kinds})
    }
    rotaries = tuple(dict.fromkeys(of_kind.values()))
    layers = tuple(
        LayerSpec(size if kind == SLIDING else 0, rotaries.index(of_kind[kind])) for kind in kinds
    )
    return layers, rotaries


def _kinds(text: Any, traits: Traits, count: int) -> list[str]:
    """The kind of every layer."""
    windowed = traits.windows == "all" and getattr(text, "sliding_window", None) is not None
    usual = SLIDING if windowed else FULL
    kinds = list(getattr(text, "layer_types", None) or [usual] * count)
    unknown = sorted(set(kinds) - {FULL, SLIDING})
    if unknown:
        raise refused("layer_types", unknown[0], "layers of that type have no paged cache")
    if len(kinds) != count:
        raise refused("layer_types", kinds, f"it must name the type of each of {count} layers")
    other = sorted(set(kinds) - {usual})
    if traits.windows != "typed" and other:
        raise refused("layer_types", other[0], "the model has no layers of that type")
    return kinds


def _rotary(text: Any, traits: Traits, head_dim: int, kind: str | None) -> Rotary:
    """The embedding of layers of one ``kind``; None: of all layers."""
    rope = getattr(text, "rope_parameters", None) or {}
    rope = rope if kind is None else rope.get(kind)
    if not isinstance(rope, Mapping):
        raise refused("rope_parameters", rope, f"layers of type {kind} need some")
    scaling = rope.get("rope_type", "default")
    if scaling not in ROPE_TYPES:
        raise refused(
            "rope_type",
            scaling,
            "such rotary embeddings are unknown, or depend on the longest sequence of a batch; "
            f"those that are served: {', '.join(ROPE_TYPES)}",
        )
    unknown = sorted(set(rope) - ROPE_KEYS)
    if unknown:
        why = f"nobody knows what {unknown[0]!r} does to a rotation"
        raise refused("rope_parameters", dict(rope), why)
    part = rope.get("partial_rotary_factor", 1.0)
    if part not in (None, 1.0):
        raise refused("partial_rotary_factor", part, "heads are rotated whole here")
    frequencies, factor = _frequencies(text, rope, head_dim, kind)
    return Rotary(frequencies, _axes(rope, traits, head_dim), factor)


def _frequencies(
    text: Any, rope: Mapping[str, Any], head_dim: int, kind: str | None
) -> tuple[tuple[float, ...], float]:
    """In float32, as transformers makes them, which has the scaled kinds."""
    try:
        if rope.get("rope_type", "default") == "default":
            exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
            return tuple((1.0 / (rope["rope_theta"] ** exponents)).tolist()), 1.0
        made, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](text, layer_type=kind)
    except Exception as error:  # a field that is missing, or no number
        why = f"no such rotation ({in_short(error)})"
        raise refused("rope_parameters", dict(rope), why) from error
    return tuple(made.tolist()), float(factor)


def _axes(rope: Mapping[str, Any], traits: Traits, head_dim: int) -> tuple[int, ...]:
    """The axis of each pair of dimensions."""
    pairs, sections = head_dim // 2, rope.get("mrope_section", traits.sections)
    if not traits.sections:
        if sections:
            raise refused("mrope_section", sections, "the model's positions have one axis")
        return (0,) * pairs
    if not isinstance(sections, list | tuple) or len(sections) != 3 or sum(sections) != pairs:
        raise refused("mrope_section", sections, f"three sections must share {pairs} pairs")
    if rope.get("mrope_interleaved", traits.interleaved) is not traits.interleaved:
        raise refused("mrope_interleaved", not traits.interleaved, "the family's are the other way")
    if not traits.interleaved:
        return tuple(axis for axis, size in enumerate(sections) for _ in range(size))
    axes = [0] * pairs
    for axis in (1, 2):
        places = range(axis, min(3 * sections[axis], pairs), 3)
        for place in places:
            axes[place] = axis
    return tuple(axes)
