"""Ray's own refusals as error objects, and an end of answers whose replica is gone.

A replica names itself in every answer. What has no name is Ray's own: it found no replica, none had
room, the time was over, or the replica that had the request was lost. Such a request may have
begun, so nothing repeats it here; its client may.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.deadline import too_late
from saccade_server.api.errors import ApiError, Interrupted, Unavailable, from_exception
from saccade_server.api.ids import REQUEST_ID, new_id
from saccade_server.api.sse import DONE, frame
from saccade_server.cluster.names import REPLICA

logger = logging.getLogger("ray.serve")

ID = "x-request-id"
RAYS_OWN = "/-/"
"""What the paths of Ray's own pages begin with: a proxy's health and routes."""


class Answers:
    """The outermost layer of a proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(RAYS_OWN):
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        try:
            await self.app(scope, receive, answer.send)
        except Exception as error:
            failure = from_exception(error)
            if failure.status == ApiError.status:
                logger.exception("request %s failed in the proxy", answer.name)
            await answer.end(failure)
        else:
            await answer.end(replica_lost())


class _Answer:
    """One answer on its way, and what to say if it does not come to its end."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        headers = MutableHeaders(scope=scope)
        offered = headers.get(ID, "")
        self.name = offered if REQUEST_ID.fullmatch(offered) else new_id()
        headers[ID] = self.name  # Ray would take any
        self._started = self._finished = self._replaced = self._streams = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif not self._replaced:
            self._finished = not message.get("more_body", False)
            await self._send(message)

    async def _start(self, message: Message) -> None:
        headers = Headers(raw=message["headers"])
        if message["status"] >= 400 and REPLICA not in headers and not _is_error_object(headers):
            await self._say(from_ray(message["status"], headers))
            return
        self._started = True
        self._streams = headers.get("content-type", "").startswith("text/event-stream")
        await self._send(self._named(message))

    def _named(self, message: MutableMapping[str, Any]) -> Message:
        """With the request's id once; Ray adds it to what the replica has said already."""
        kept = [
            (name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"
        ]
        return {**message, "headers": [*kept, (b"x-request-id", self.name.encode())]}

    async def end(self, failure: ApiError) -> None:
        """Say ``failure`` if the answer has not come to its end."""
        if self._finished or self._replaced:
            return
        if not self._started:
            await self._say(failure)
        elif self._streams:
            await self._send({"type": "http.response.body", "body": frame(failure.body()) + DONE})
        # Anything else is cut: its length, or its end, was announced and does not come.

    async def _say(self, failure: ApiError) -> None:
        self._replaced = True
        response = failure.response()
        await self._send(
            self._named(
                {
                    "type": "http.response.start",
                    "status": response.status_code,
                    "headers": response.raw_headers,
                }
            )
        )
        await self._send({"type": "http.response.body", "body": bytes(response.body)})


def _is_error_object(headers: Headers) -> bool:
    """True of refusals by the layers inside, which Ray does not see; Ray's are plain text."""
    return headers.get("content-type", "").startswith("application/json")


def from_ray(status: int, headers: Headers) -> ApiError:
    """What a client is told when Ray answered with ``status`` itself."""
    if status == 408:
        return too_late()
    if status == 404:
        return Unavailable("No server is deployed here now.", code="no_replica", retry_after=5)
    if status in (429, 503):
        after = headers.get("retry-after", "1")
        seconds = int(after) if after.isdecimal() else 1
        message = "No replica has room for this request now; try again soon."
        return Unavailable(message, code="no_replica", retry_after=seconds)
    return replica_lost()


def replica_lost() -> Interrupted:
    """The replica ended before the answer did."""
    message = "The replica that answered this request was lost; it may have begun."
    return Interrupted(message, code="replica_lost")
