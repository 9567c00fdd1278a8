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
