"""Server-sent events: framing, keep-alive comments, errors on the way, clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from saccade_server.api.errors import ApiError, from_exception
from saccade_server.api.layers.observe import error_log, request_id

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

Result = TypeVar("Result")


def frame(value: object) -> bytes:
    """One event that carries ``value`` as JSON."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def unless_disconnected(receive: Receive, work: Awaitable[Result]) -> Result:
    """Do ``work``; cancel it when the client leaves.

    Raises:
        ClientDisconnect: the client left first.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends ``events`` as they come and closes them whatever happens.

    What fails before the first event is an ordinary error response; later it is an event. The
    headers wait for the first event, but not longer than one keep-alive interval.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[dict[str, Any], None],
        keep_alive: float,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(headers={**HEADERS, **headers})
        del self.headers["content-length"]  # of the empty body that Response assumed
        self.events = events
        self.keep_alive = keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await unless_disconnected(receive, self._stream(scope, receive, send))

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        frames = _with_keep_alive(self.events, self.keep_alive)
        started = False
        try:
            async for piece in frames:
                if not started:
                    started = True
                    await self._start(send)
                await _send_body(send, piece)
        except ClientDisconnect:
            raise
        except Exception as error:
            failure = seen(error)
            if not started:
                await failure.response()(scope, receive, send)
                return
            await _send_body(send, b"data: " + failure.json() + b"\n\n")
        finally:
            await frames.aclose()
        await _send_body(send, DONE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})


def seen(error: Exception) -> ApiError:
    """What the client sees of ``error``; a surprise is logged."""
    failure = from_exception(error)
    if type(failure) is ApiError and failure is not error:
        error_log.error("request %s failed", request_id.get(), exc_info=error)
    return failure


async def _send_body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _with_keep_alive(
    events: AsyncGenerator[dict[str, Any], None], seconds: float
) -> AsyncGenerator[bytes, None]:
    """Frame the events; a comment fills each silence of ``seconds``."""
    try:
        while True:
            pending = asyncio.ensure_future(_next(events))
            try:
                while not (await asyncio.wait({pending}, timeout=seconds))[0]:
                    yield KEEP_ALIVE
            finally:
                # Left early: the generator must have stopped running before it can be closed.
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
            event = pending.result()
            if event is None:
                return
            yield frame(event)
    finally:
        await events.aclose()


async def _next(events: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any] | None:
    # A task cannot end with StopAsyncIteration.
    return await anext(events, None)
