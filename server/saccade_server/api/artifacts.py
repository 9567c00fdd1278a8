"""PUT, GET, HEAD and DELETE /v1/artifacts/{sha256}, and the list of them.

An upload is safetensors and nothing else, and must be made for the served model. It needs an admin
key; what calibration found is worth trusting only as far as whoever may put it there. So does a
deletion, which requests that have resolved the artifact do not notice.
"""

from __future__ import annotations

import logging
from io import BufferedReader
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from saccade_interventions.artifacts import ArtifactError, check_for, read_artifact
from saccade_interventions.errors import brief
from saccade_server.api.artifact_store import PREFIX, Listed, StoreFullError
from saccade_server.api.digest_folder import HEX
from saccade_server.api.errors import BadRequest, Conflict, NotFound, TooLarge, Unavailable
from saccade_server.api.layers.auth import check_admin
from saccade_server.api.openapi.catalog_replies import ArtifactCard, ArtifactDeleted, ArtifactList
from saccade_server.api.openapi.document import operation
from saccade_server.api.services import Services
from saccade_server.api.whole_file import CONTENT, Digest, WholeFile

logger = logging.getLogger("saccade.artifacts")


def artifacts_router(services: Services) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["Artifacts"])
    store = services.artifacts

    @router.get("/v1/artifacts", openapi_extra=operation(ArtifactList), response_model=None)
    async def list_artifacts() -> dict[str, Any]:
        """List the artifacts that requests may name."""
        found, total = await services.in_worker(lambda: (store.listing(), store.used_bytes()))
        return {
            "object": "list",
            "data": [_card(services, item) for item in found],
            "total_bytes": total,
            "max_bytes": store.max_bytes,
            "ttl_seconds": services.settings.artifact_ttl,
        }

    @router.put("/v1/artifacts/{digest}", openapi_extra=_UPLOAD)
    async def put_artifact(digest: Digest, request: Request) -> Response:
        """Keep an artifact; its bytes are the body. 201 if it is new, 200 if it was there."""
        check_admin(services.keys, request.headers)
        if not HEX.fullmatch(digest):
            message = "An artifact is named by the SHA-256 of its bytes, 64 hexadecimal digits."
            raise BadRequest(message, param="sha256")
        data = await request.body()
        found, new = await services.in_worker(lambda: _keep(services, digest, data))
        where = {"location": f"/v1/artifacts/{digest}"}
        return JSONResponse(_card(services, found), 201 if new else 200, where)

    gone = operation(ArtifactDeleted, refusals=(403, 404, 409), admin=True)

    @router.delete("/v1/artifacts/{digest}", openapi_extra=gone, response_model=None)
    async def delete_artifact(digest: Digest, request: Request) -> dict[str, Any]:
        """Delete an artifact, on all servers that share the folder.

        Requests that are being answered keep what they have; one that a profile names stays.
        """
        check_admin(services.keys, request.headers)
        await services.in_worker(lambda: _delete(services, digest))
        return {"id": PREFIX + digest, "object": "artifact", "deleted": True}

    @router.head("/v1/artifacts/{digest}", include_in_schema=False)
    @router.get("/v1/artifacts/{digest}", openapi_extra=_BYTES)
    async def get_artifact(digest: Digest) -> Response:
        """The bytes of an artifact."""
        file = await services.in_worker(lambda: _find(services, digest))
        return WholeFile(file, digest)

    return router


def _card(services: Services, item: Listed) -> dict[str, Any]:
    about, use = item.about, item.use
    return {
        "id": about.digest,
        "object": "artifact",
        "kind": about.kind,
        "bytes": about.bytes,
        "notes": about.notes,
        "defaults": dict(about.defaults),
        "fits": about.model == services.facts.fingerprint,
        "created": int(item.created),
        "last_used": int(use.last) if use.last else None,
        "uses": use.count,
        "profile": services.profiles.naming(about.digest),
    }


def _keep(services: Services, digest: str, data: bytes) -> tuple[Listed, bool]:
    try:
        artifact = read_artifact(data)
    except ArtifactError as error:
        raise BadRequest(f"{error}.", code="artifact_invalid") from None
    if artifact.digest != PREFIX + digest:
        message = f"The bytes have the SHA-256 {artifact.digest.removeprefix(PREFIX)}."
        raise BadRequest(message, code="artifact_hash_mismatch", param="sha256")
    try:
        check_for(artifact, services.facts)
    except ArtifactError as error:
        raise BadRequest(f"{error}.", code="artifact_mismatch") from None
    try:
        new = services.artifacts.put(artifact, data)
    except StoreFullError:
        message = "The server's folder of artifacts is full."
        raise TooLarge(message, code="artifact_store_full") from None
    except OSError as error:
        logger.error("artifact %s could not be kept: %s", digest, error)
        message = "The artifact could not be kept."
        raise Unavailable(message, code="artifact_store_failed", retry_after=30) from None
    found = services.artifacts.about(artifact.digest)
    if found is None:
        raise Unavailable("The artifact was deleted while it was put.", code="artifact_deleted")
    return found, new


def _delete(services: Services, digest: str) -> None:
    if (profile := services.profiles.naming(PREFIX + digest)) is not None:
        message = f"The profile {brief(profile)} names this artifact; change the profile first."
        raise Conflict(message, code="artifact_in_use", param="sha256")
    if not services.artifacts.delete(PREFIX + digest):
        raise _missing()
    logger.info("artifact %s was deleted", PREFIX + digest)


def _missing() -> NotFound:
    return NotFound("There is no such artifact.", code="artifact_not_found", param="sha256")


def _find(services: Services, digest: str) -> BufferedReader:
    file = services.artifacts.open(digest)
    if file is None:
        raise _missing()
    return file


_UPLOAD = operation(
    ArtifactCard,
    statuses=(200, 201),
    refusals=(400, 403, 408, 413, 415),
    admin=True,
    requestBody={"required": True, "content": CONTENT},
)
_BYTES = operation(
    refusals=(404,), responses={"200": {"description": "Its bytes.", "content": CONTENT}}
)
