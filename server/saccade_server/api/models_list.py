"""GET /v1/models."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from saccade_server.api.errors import NotFound
from saccade_server.api.services import Services


def models_router(services: Services) -> APIRouter:
    """Make the routes."""
    router = APIRouter()
    served = services.settings.served_model_name
    created = int(time.time())

    def card() -> dict[str, Any]:
        info = services.engine.info
        return {
            "id": served,
            "object": "model",
            "created": created,
            "owned_by": "saccade",
            "max_model_len": services.room,
            "accepts_images": info.accepts_images,
            "layers": info.layers,
            "heads": info.heads,
        }

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """List the one model that is served."""
        return {"object": "list", "data": [card()]}

    @router.get("/v1/models/{model:path}")
    async def retrieve_model(model: str) -> dict[str, Any]:
        """Describe the model."""
        if model != served:
            raise NotFound("There is no such model.", code="model_not_found", param="model")
        return card()

    return router
