"""Bearer keys.

An API key opens every route but those that change what the server has; these need an admin key,
which opens the others too.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from saccade_server.api.access.keys import NOBODY, KeyRing, caller
from saccade_server.api.errors import Forbidden, Unauthorized
from saccade_server.api.layers.admission import open_routes
from saccade_server.api.layers.record import record_of
from saccade_server.api.openapi.page import DOCS_PARTS
from saccade_server.api.playground.page import PLAYGROUND_PARTS
from saccade_server.api.settings import ApiSettings


def is_open_route(path: str, settings: ApiSettings) -> bool:
    """True for what needs no key: the probes, the pages, and metrics if the operator says so."""
    return path in open_routes(settings) or path in DOCS_PARTS or path in PLAYGROUND_PARTS


class Authenticate:
    """Refuses most routes without one of the keys; without keys all are open.

    Whoever comes with a key is its :data:`~saccade_server.api.access.keys.caller`.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, settings: ApiSettings) -> None:
        self.app = app
        self.settings = settings
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The task may have begun in the context of the connection's request before.
        caller.set(NOBODY)
        if scope["type"] == "lifespan" or not self.keys.keys or self._is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        key = self.keys.find(Headers(scope=scope).get("authorization", ""))
        if key is not None:
            caller.set(key)
            record_of(scope).key = key.name
        elif self.keys.guards:
            await _unauthorized("A valid API key").response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return is_open_route(path, self.settings)


def check_admin(keys: KeyRing, headers: Headers) -> None:
    """Refuse whoever may not change what the server has.

    Raises:
        Forbidden: nobody may, or the key is one that may not.
        Unauthorized: there is no key.
    """
    if not keys.admins:
        message = "This server takes no uploads: it was started without --admin-key."
        raise Forbidden(message, code="admin_key_not_configured")
    key = keys.find(headers.get("authorization", ""))
    if key is not None and key.admin:
        return
    if "authorization" in headers:
        raise Forbidden("This needs an admin key; the key that was sent is none.")
    raise _unauthorized("An admin key")


def _unauthorized(what: str) -> Unauthorized:
    message = f"{what} is needed: 'Authorization: Bearer KEY'."
    return Unauthorized(message, headers={"www-authenticate": "Bearer"})
