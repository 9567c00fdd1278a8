"""Bearer keys, compared in constant time.

An API key opens every route but those that change what the server has; these need an admin key,
which opens the others too.
"""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from saccade_server.api.errors import Forbidden, Unauthorized
from saccade_server.api.layers.admission import PROBES
from saccade_server.api.openapi.page import DOCS_PARTS
from saccade_server.api.playground.page import PLAYGROUND_PARTS


def is_open_route(path: str) -> bool:
    """True for what needs no key: the probes, and the pages."""
    return path in PROBES or path in DOCS_PARTS or path in PLAYGROUND_PARTS


class Authenticate:
    """Refuses most routes without one of the keys; without keys all are open."""

    def __init__(
        self, app: ASGIApp, keys: tuple[str, ...], admin_keys: tuple[str, ...] = ()
    ) -> None:
        self.app = app
        self.open = not keys
        self.keys = (*keys, *admin_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_route = self.open or scope["type"] == "lifespan" or is_open_route(scope["path"])
        if open_route or _known(self.keys, Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        await _unauthorized("A valid API key").response()(scope, receive, send)


def check_admin(admin_keys: tuple[str, ...], headers: Headers) -> None:
    """Refuse whoever may not change what the server has.

    Raises:
        Forbidden: nobody may, or the key is one that may not.
        Unauthorized: there is no key.
    """
    if not admin_keys:
        message = "This server takes no uploads: it was started without --admin-key."
        raise Forbidden(message, code="admin_key_not_configured")
    if _known(admin_keys, headers):
        return
    if "authorization" in headers:
        raise Forbidden("This needs an admin key; the key that was sent is none.")
    raise _unauthorized("An admin key")


def _unauthorized(what: str) -> Unauthorized:
    message = f"{what} is needed: 'Authorization: Bearer KEY'."
    return Unauthorized(message, headers={"www-authenticate": "Bearer"})


def _known(keys: tuple[str, ...], headers: Headers) -> bool:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    # Header values are latin-1 on the wire.
    digest = _digest(key.strip().encode("latin-1", "replace"))
    # Every key is compared, so the time does not tell which one nearly matched.
    matches = [hmac.compare_digest(digest, _digest(known.encode())) for known in keys]
    return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
