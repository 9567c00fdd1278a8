"""Language models: one position axis, no images."""

from __future__ import annotations

from saccade_server.models.base import ServedModel
from saccade_server.models.description import Traits


class Llama(ServedModel):
    """Llama and what shares its architecture (Vicuna, SmolLM, ...)."""

    family = "llama"
    traits = Traits(mlp_bias="mlp_bias")


class Qwen3(ServedModel):
    """Qwen3, dense; layers may attend within a sliding window."""

    family = "qwen3"
    traits = Traits(head_norms=True, windows="typed")


class Qwen2(ServedModel):
    """Qwen2 and Qwen2.5."""

    family = "qwen2"
    traits = Traits(qkv_bias=True, output_bias=False, windows="typed")


class Mistral(ServedModel):
    """Mistral; all layers attend within a window, if the configuration says one."""

    family = "mistral"
    traits = Traits(qkv_bias=False, output_bias=False, windows="all")


class Gemma3(ServedModel):
    """Gemma 3 without images (1B and 270M); most layers attend within a window."""

    family = "gemma3_text"
    traits = Traits(
        windows="typed",
        head_norms=True,
        plus_one=True,
        post_norms=True,
        scaled_embeddings=True,
        activation="hidden_activation",
        scalar="query_pre_attn_scalar",
    )
