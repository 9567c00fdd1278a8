"""What surrounds every request: its id, its log line, the last safety net, drain and body limit.

Pure ASGI, outermost first: :class:`Observe`, :class:`ReadOut`, then authentication
(:mod:`~saccade_server.api.auth`), so that strangers take nobody's place, then :class:`Drain` and
:class:`LimitBody`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.errors import (
    Timeout,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
    bounded,
    draining,
    from_exception,
)
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.api.settings import ApiSettings

PROBES = frozenset({"/live", "/ready", "/health"})
"""Routes that answer without a key and while draining."""

DISCARD_SECONDS = 5.0

CLIENT_CLOSED = 499  # nginx's number for a client that left before it was answered

request_id: ContextVar[str] = ContextVar("saccade_request_id", default="-")

access_log = logging.getLogger("saccade.access")
error_log = logging.getLogger("saccade.error")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Observe:
    """Gives each request an id, logs one line about it, and turns surprises into a 500."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self.log = settings.access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        name = offered if _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
        request_id.set(name)
        began = time.perf_counter()
        status = 0
        size = 0

        async def observed_send(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, observed_send)
        except ClientDisconnect:
            status = status or CLIENT_CLOSED
        except Exception as error:
            error_log.exception("request %s failed", name)
            if not status:
                await from_exception(error).response()(scope, receive, observed_send)
        finally:
            if self.log:
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


class ReadOut:
    """Reads the rest of a refused body before the refusal is sent, within bounds.

    A server that closes a connection with unread bytes resets it, and the client then sees the
    reset instead of the refusal. Who sends ``Expect: 100-continue`` has not sent the body yet.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self.limit = 4 * settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        if not has_body or "expect" in headers:
            await self.app(scope, receive, send)
            return
        complete = False

        async def watched_receive() -> Message:
            nonlocal complete
            message = await receive()
            complete = complete or not message.get("more_body", False)
            return message

        async def late_send(message: Message) -> None:
            if message["type"] == "http.response.start" and not complete:
                await _discard(watched_receive, lambda: complete, self.limit)
            await send(message)

        await self.app(scope, watched_receive, late_send)


async def _discard(receive: Receive, complete: Callable[[], bool], limit: int) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while limit > 0 and not complete():
                limit -= len((await receive()).get("body", b""))


class Drain:
    """Counts the requests in flight; refuses too many, and all new ones in a shutdown."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, settings: ApiSettings) -> None:
        self.app = app
        self.lifecycle = lifecycle
        self.most = settings.max_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
        elif self.lifecycle.draining:
            await draining().response()(scope, receive, send)
        elif self.lifecycle.in_flight >= self.most:
            await Unavailable("Too many requests at once.").response()(scope, receive, send)
        else:
            with self.lifecycle.track():
                await self.app(scope, receive, send)


class LimitBody:
    """Bounds the size and the time of a request body by what really arrives, and its type.

    What is posted is JSON, what is put is an artifact's bytes.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self.limits = {
            "POST": (settings.max_body_bytes, settings.body_timeout),
            "PUT": (settings.max_artifact_bytes, settings.upload_timeout),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in self.limits:
            await self.app(scope, receive, send)
            return
        limit, timeout = self.limits[scope["method"]]
        headers = Headers(scope=scope)
        media = _json_media(headers) if scope["method"] == "POST" else _binary_media(headers)
        refusal = _size(headers, limit) or media or _encoding(headers)
        if refusal:
            await refusal.response()(scope, receive, send)
            return
        deadline = time.monotonic() + timeout
        received = 0
        complete = False

        async def limited_receive() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                left = deadline - time.monotonic()
                message = await asyncio.wait_for(receive(), max(left, 0.001))
            except TimeoutError:
                raise Timeout("The request's body took too long.", headers=_CLOSE) from None
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            complete = not message.get("more_body", False)
            return message

        await self.app(scope, limited_receive, send)


_CLOSE = {"connection": "close"}
_BINARY = ("", "application/octet-stream", "application/safetensors", "application/x-safetensors")


def _size(headers: Headers, limit: int) -> TooLarge | None:
    announced = headers.get("content-length", "")
    too_large = announced.isdecimal() and int(announced[:20]) > limit
    return _too_large(limit) if too_large else None


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body exceeds {limit} bytes.", headers=_CLOSE)


def _binary_media(headers: Headers) -> UnsupportedMedia | None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _BINARY:
        return UnsupportedMedia("The content type must be application/octet-stream.")
    return None


def _encoding(headers: Headers) -> UnsupportedMedia | None:
    if headers.get("content-encoding", "identity").lower() != "identity":
        return UnsupportedMedia("Compressed bodies are not read.")
    return None


def _json_media(headers: Headers) -> UnsupportedMedia | None:
    kind, *parameters = headers.get("content-type", "").split(";")
    if kind.strip().lower() != "application/json":
        return UnsupportedMedia("The content type must be application/json.")
    for parameter in parameters:
        name, _, value = parameter.lower().partition("=")
        if name.strip() == "charset" and value.strip(' "') not in ("utf-8", "utf8"):
            return UnsupportedMedia("The charset must be UTF-8.")
    return None
