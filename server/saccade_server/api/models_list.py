"""GET /v1/models. Sizes and fingerprint are what the makers of artifacts have to know."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from saccade_server.api.openapi.catalog_replies import ModelCard, ModelList
from saccade_server.api.openapi.document import operation
from saccade_server.api.services import Services
from saccade_server.grammars.grammar import GrammarKind

STRUCTURED = [kind.value for kind in GrammarKind if kind is not GrammarKind.TOOLS]
"""What answers can be made to follow."""


def models_router(services: Services) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["Models"])
    served = services.settings.served_model_name
    created = int(time.time())

    def card(name: str, profile: str | None) -> dict[str, Any]:
        info, markers = services.engine.info, services.prompts.markers
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "saccade",
            "max_model_len": services.room,
            "accepts_images": info.accepts_images,
            "accepts_tools": services.prompts.tools_refused is None,
            "structured_outputs": STRUCTURED if info.follows_grammars else [],
            "knows_sinks": bool(info.sink_dims),
            "batch_invariant": info.batch_invariant,
            "layers": info.layers,
            "heads": info.heads,
            "kv_heads": info.kv_heads,
            "head_dim": info.head_dim,
            "hidden_size": info.hidden_size,
            "fingerprint": info.fingerprint,
            "chat_template_variables": list(services.prompts.template_variables),
            "reasoning_markers": None if markers is None else [markers.opens, markers.closes],
            "profile": profile or services.profiles.default,
        }

    @router.get("/v1/models", openapi_extra=operation(ModelList), response_model=None)
    async def list_models() -> dict[str, Any]:
        """List the served model, and its alias for every profile."""
        aliases = [card(f"{served}+{profile}", profile) for profile in services.profiles]
        return {"object": "list", "data": [card(served, None), *aliases]}

    one = operation(ModelCard, refusals=(404,))

    @router.get("/v1/models/{model:path}", openapi_extra=one, response_model=None)
    async def retrieve_model(model: str) -> dict[str, Any]:
        """Describe the model, or an alias of it."""
        return card(model, services.check_model(model))

    return router
