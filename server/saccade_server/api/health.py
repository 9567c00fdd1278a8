"""Probes for supervisors and load balancers, version and load.

``intervention_noops`` in /load counts interventions that should have run and did not; anything but
0 is a fault of the server.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter, Response

import saccade_server
from saccade_server.api.errors import Unavailable, draining
from saccade_server.api.openapi.catalog_replies import Load, Version
from saccade_server.api.openapi.document import operation
from saccade_server.api.services import Services
from saccade_server.engine.watchdog import HUNG

STATS_SECONDS = 5.0
FOR_METRICS = ("forms", "between_tokens", "step_tokens")
"""What of the engine's counters /metrics alone says."""
LATE = 1.0
"""Times a limit after which other servers should get the requests."""


def health_router(services: Services) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["Operation"])

    def check_alive(limit: float = HUNG) -> None:
        """Refuse if the engine is dead, or has used up its time to show progress ``limit`` times.

        Nothing here asks the engine: one that hangs would not answer.
        """
        if not services.engine.alive:
            raise Unavailable("The engine has stopped.", code="engine_dead", retry_after=5)
        settings = services.settings
        if services.engine.lag.overdue(settings.silence_timeout, settings.step_timeout) >= limit:
            raise Unavailable("The engine does not get on.", code="engine_hung", retry_after=5)

    async def live() -> Response:
        """The process works; restart it if not."""
        check_alive()
        return Response()

    async def ready() -> Response:
        """New requests are welcome; send them elsewhere if not."""
        check_alive(LATE)
        if services.lifecycle.draining:
            raise draining()
        if services.engine.full:
            raise Unavailable("The queue is full.")
        return Response()

    for path, probe in (("/live", live), ("/ready", ready), ("/health", ready)):
        router.head(path, include_in_schema=False)(probe)
        router.get(path, openapi_extra=operation(refusals=(503,)), response_class=Response)(probe)

    @router.get("/version", openapi_extra=operation(Version), response_model=None)
    async def version() -> dict[str, str]:
        """The version of the server, and the deployment that it is of."""
        deployment = services.membership.digest
        return {"version": saccade_server.__version__, "deployment": deployment}

    @router.get("/load", openapi_extra=operation(Load, refusals=(503,)), response_model=None)
    async def load() -> dict[str, Any]:
        """What the engine is busy with, and its lifetime counters."""
        check_alive()
        try:
            stats = await asyncio.wait_for(services.engine.stats(), STATS_SECONDS)
        except TimeoutError:
            raise Unavailable("The engine is in a long step.") from None
        requests = {
            "http_requests": services.lifecycle.in_flight,
            "intervention_noops": services.noops.total(),
        }
        counters = msgspec.to_builtins(stats)
        for name in FOR_METRICS:
            del counters[name]
        return {**counters, **requests, "draining": services.lifecycle.draining}

    return router
