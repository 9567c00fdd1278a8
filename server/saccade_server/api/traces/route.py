"""GET and HEAD /v1/traces/{sha256}: what answers link to."""

from __future__ import annotations

from io import BufferedReader

from fastapi import APIRouter, Response

from saccade_server.api.errors import NotFound
from saccade_server.api.openapi.document import operation
from saccade_server.api.services import Services
from saccade_server.api.whole_file import CONTENT, Digest, WholeFile


def traces_router(services: Services) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["Traces"])
    store = services.traces.store

    @router.head("/v1/traces/{digest}", include_in_schema=False)
    @router.get("/v1/traces/{digest}", openapi_extra=_BYTES)
    async def get_trace(digest: Digest) -> Response:
        """The arrays of a trace, as safetensors; the oldest traces are gone when room is needed."""
        file = await services.in_worker(lambda: _find(services, digest))
        named = f'attachment; filename="trace-{digest[:16]}.safetensors"'
        return WholeFile(file, digest, {"content-disposition": named})

    def _find(services: Services, digest: str) -> BufferedReader:
        file = store.open(digest)
        if file is None:
            message = "There is no such trace, or it had to leave for newer ones."
            raise NotFound(message, code="trace_not_found", param="sha256")
        return file

    return router


_BYTES = operation(
    refusals=(404,), responses={"200": {"description": "Its bytes.", "content": CONTENT}}
)
