"""What interventions may know of the served model."""

from __future__ import annotations

from collections.abc import Iterable

from saccade_interventions.model_facts import ModelFacts
from saccade_server.engine.request import EngineInfo


def facts_of(info: EngineInfo, special_tokens: Iterable[int] = ()) -> ModelFacts:
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
        special_tokens=tuple(sorted(special_tokens)),
    )
