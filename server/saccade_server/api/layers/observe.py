"""Each request's id and its record, for whoever looks on.

A connection that is one too many is told here to end, whatever it is answered.
"""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.ids import REQUEST_ID, new_id
from saccade_server.api.layers.admission import CROWDED
from saccade_server.api.layers.record import RECORD, Observer, Record
from saccade_server.api.layers.shortcut import shortcut
from saccade_server.logs.context import request_id

CLIENT_CLOSED = 499  # nginx's number for a client that left before it was answered

error_log = logging.getLogger("saccade.error")


class Observe:
    """Gives each request an id and a record, and shows that to its observers.

    ``paths`` are routes as they are sent: who is refused before routing asked for one all the same.
    """

    def __init__(
        self,
        app: ASGIApp,
        observers: tuple[Observer, ...] = (),
        paths: frozenset[str] = frozenset(),
    ) -> None:
        self.app = app
        self.observers = observers
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = scope[RECORD] = _begin(scope, headers)
        request_id.set(record.id)
        for observer in self.observers:
            observer.begun(record, headers)
        past = shortcut(scope)
        if past is not None:
            record.bytes = -past.streamed

        async def observed_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.id
                if scope.get("state", {}).get(CROWDED):
                    headers["connection"] = "close"
            elif message["type"] == "http.response.body":
                record.bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, observed_send)
        except ClientDisconnect:
            record.left = True
        finally:
            if past is not None:
                record.bytes += past.streamed
            self._end(scope, record)

    def _end(self, scope: Scope, record: Record) -> None:
        record.status = record.status or CLIENT_CLOSED
        record.route = record.route or getattr(scope.get("route"), "path", "")
        if not record.route and record.path in self.paths:
            record.route = record.path
        record.ended = time.monotonic()
        for observer in self.observers:
            observer.ended(record)


def _begin(scope: Scope, headers: Headers) -> Record:
    offered = headers.get("x-request-id", "")
    client = scope.get("client")
    return Record(
        id=offered if REQUEST_ID.fullmatch(offered) else new_id(),
        method=scope["method"],
        path=scope["path"],
        client=client[0] if client else "",
        began=time.monotonic(),
    )
