"""Each request's id and its log line.

A connection that is one too many is told here to end, whatever it is answered.
"""

from __future__ import annotations

import logging
import re
import time
from contextvars import ContextVar
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.errors import bounded
from saccade_server.api.ids import new_id
from saccade_server.api.layers.admission import CROWDED
from saccade_server.api.layers.shortcut import shortcut
from saccade_server.api.settings import ApiSettings

CLIENT_CLOSED = 499  # nginx's number for a client that left before it was answered

request_id: ContextVar[str] = ContextVar("saccade_request_id", default="-")

access_log = logging.getLogger("saccade.access")
error_log = logging.getLogger("saccade.error")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Observe:
    """Gives each request an id and logs one line about it."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self.log = settings.access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        name = offered if _REQUEST_ID.fullmatch(offered) else new_id()
        request_id.set(name)
        began = time.perf_counter()
        status = 0
        past = shortcut(scope)
        size = -past.streamed if past else 0

        async def observed_send(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = name
                if scope.get("state", {}).get(CROWDED):
                    headers["connection"] = "close"
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, observed_send)
        except ClientDisconnect:
            status = status or CLIENT_CLOSED
        finally:
            if self.log:
                size += past.streamed if past else 0
                self._write(scope, name, status or CLIENT_CLOSED, size, began)

    def _write(self, scope: Scope, name: str, status: int, size: int, began: float) -> None:
        client = scope.get("client")
        access_log.info(
            "%s %s %s %d %dB %.1fms id=%s",
            client[0] if client else "-",
            scope["method"],
            bounded(quote(scope["path"])),
            status,
            size,
            1e3 * (time.perf_counter() - began),
            name,
        )
