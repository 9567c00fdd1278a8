"""GET /v1/deployment."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from saccade_server.api.deployment import deployment_of
from saccade_server.api.openapi.catalog_replies import DeploymentFacts
from saccade_server.api.openapi.document import operation
from saccade_server.api.services import Services


def deployment_router(services: Services) -> APIRouter:
    """Make the route."""
    router = APIRouter(tags=["Operation"])

    @router.get("/v1/deployment", openapi_extra=operation(DeploymentFacts), response_model=None)
    async def deployment() -> dict[str, Any]:
        """Show what must be equal on servers behind one address, and its digest."""
        found = await services.in_worker(lambda: deployment_of(services, services.profiles))
        return {"object": "deployment", "deployment": found.digest, "facts": dict(found.facts)}

    return router
