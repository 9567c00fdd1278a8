"""GET /metrics. It answers even if the engine does not, without what only the engine knows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from fastapi import APIRouter, Request, Response

from saccade_server.api.metrics import names
from saccade_server.api.metrics.exposition import (
    Exposition,
    Family,
    family,
    of_cache,
    of_engine,
    of_requests,
)
from saccade_server.api.openapi.document import operation
from saccade_server.api.services import Services
from saccade_server.engine.client import EngineDeadError
from saccade_server.engine.request import EngineStats

ENGINE_SECONDS = 2.0
"""How long the engine, which answers between two steps, is waited for."""

Collect = Callable[[Services], Awaitable[Iterable[Family]]]
"""What a scrape of a server says: its own, unless others answer at the same address."""

TEXT = {"text/plain": {"schema": {"type": "string"}}}
OPEN_METRICS = {"application/openmetrics-text": {"schema": {"type": "string"}}}


async def families_of(services: Services) -> list[Family]:
    """What a server says of itself, within :data:`ENGINE_SECONDS`."""
    return _families(services, await _asked(services))


def metrics_router(services: Services, collect: Collect = families_of) -> APIRouter:
    """Make the route, which says what ``collect`` finds."""
    router = APIRouter(tags=["Operation"])
    described = operation(
        responses={"200": {"description": "Success.", "content": TEXT | OPEN_METRICS}}
    )

    @router.get("/metrics", openapi_extra=described, response_class=Response)
    async def metrics(request: Request) -> Response:
        """Numbers for Prometheus; docs/observing.md says what they mean."""
        exposition = Exposition(tuple(await collect(services)))
        accept = request.headers.get("accept", "")
        # Text of a thousand lines: whoever waits for a token does not wait for it.
        text, content_type = await asyncio.to_thread(exposition.written, accept)
        return Response(text, headers={"content-type": content_type, "cache-control": "no-store"})

    return router


async def _asked(services: Services) -> EngineStats | None:
    """What the engine says; None if it is dead, or in a long step."""
    try:
        return await asyncio.wait_for(services.engine.stats(), ENGINE_SECONDS)
    except (TimeoutError, EngineDeadError):
        return None


def _families(services: Services, stats: EngineStats | None) -> list[Family]:
    model, engine = services.settings.served_model_name, services.engine
    lifecycle = services.lifecycle
    numbers = {
        names.ALIVE: float(engine.alive),
        names.ANSWERED: float(stats is not None),
        names.IN_FLIGHT: float(lifecycle.in_flight),
        names.DRAINING: float(lifecycle.draining),
    }
    return [
        *(family(metric, model, {(): value}) for metric, value in numbers.items()),
        of_cache(engine.info.cache_tokens, model),
        family(names.DEPLOYMENT, model, {(services.membership.digest,): 1}),
        *of_requests(services.tally, model),
        *([] if stats is None else of_engine(stats, model)),
    ]
