"""GET /v1/profiles."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from saccade_server.api.openapi.catalog_replies import ProfileList
from saccade_server.api.openapi.document import operation
from saccade_server.api.services import Services
from saccade_server.requests.receipts import fingerprint


def profiles_router(services: Services) -> APIRouter:
    """Make the route."""
    router = APIRouter(tags=["Interventions"])
    served = services.settings.served_model_name

    @router.get("/v1/profiles", openapi_extra=operation(ProfileList), response_model=None)
    async def list_profiles() -> dict[str, Any]:
        """List the operator's bundles of interventions, each also a model ``<model>+<profile>``."""
        return {
            "object": "list",
            "data": [
                {
                    "id": profile.name,
                    "object": "intervention.profile",
                    "description": profile.description,
                    "model": f"{served}+{profile.name}",
                    "interventions": list(profile.entries),
                    "fingerprint": fingerprint(profile.interventions),
                    "default": profile.name == services.profiles.default,
                }
                for profile in services.profiles.values()
            ],
        }

    return router
