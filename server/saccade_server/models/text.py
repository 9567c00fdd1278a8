"""Language models: one position axis, no images."""

from __future__ import annotations

from saccade_server.models.base import ServedModel


class Llama(ServedModel):
    """Llama and what shares its architecture (Vicuna, SmolLM, ...)."""

    family = "llama"


class Qwen3(ServedModel):
    """Qwen3, dense; layers may attend within a sliding window."""

    family = "qwen3"
