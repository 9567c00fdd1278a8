"""What interventions may know of the served model."""

from __future__ import annotations

from saccade_interventions.model_facts import ModelFacts
from saccade_server.engine.request import EngineInfo
from saccade_server.models.prompt import PromptProcessor


def facts_of(info: EngineInfo, prompts: PromptProcessor) -> ModelFacts:
    """What interventions may know of the model that an engine has loaded, and of its tokenizer."""
    return ModelFacts(
        layers=info.layers,
        heads=info.heads,
        kv_heads=info.kv_heads,
        head_dim=info.head_dim,
        hidden_size=info.hidden_size,
        sink_dims=info.sink_dims,
        accepts_images=info.accepts_images,
        fingerprint=info.fingerprint,
        step_tokens=info.max_batched_tokens,
        special_tokens=tuple(sorted(prompts.special_token_ids)),
    )
