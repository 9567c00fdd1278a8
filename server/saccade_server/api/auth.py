"""Bearer keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from saccade_server.api.errors import Unauthorized
from saccade_server.api.middleware import PROBES


class Authenticate:
    """Refuses every route but the probes without one of the keys; without keys all are open."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self.app = app
        self.digests = tuple(_digest(key.encode()) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_route = not self.digests or scope["type"] == "lifespan" or scope["path"] in PROBES
        if open_route or self._known(Headers(scope=scope).get("authorization", "")):
            await self.app(scope, receive, send)
            return
        refusal = Unauthorized(
            "A valid API key is needed: 'Authorization: Bearer KEY'.",
            headers={"www-authenticate": "Bearer"},
        )
        await refusal.response()(scope, receive, send)

    def _known(self, header: str) -> bool:
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer":
            return False
        # Header values are latin-1 on the wire.
        digest = _digest(key.strip().encode("latin-1", "replace"))
        # Every key is compared, so the time does not tell which one nearly matched.
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
