"""Server-sent events: framing, keep-alive comments, errors on the way, clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from saccade_server.api.errors import ApiError, from_exception
from saccade_server.api.layers.observe import error_log
from saccade_server.api.layers.record import record_of
from saccade_server.api.layers.shortcut import Shortcut, shortcut
from saccade_server.logs.context import request_id

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

Result = TypeVar("Result")

_encode = msgspec.json.Encoder().encode


def frame(value: object) -> bytes:
    """One event that carries ``value`` as JSON."""
    return b"data: " + _encode(value) + b"\n\n"


async def unless_disconnected(receive: Receive, work: Coroutine[Any, None, Result]) -> Result:
    """Do ``work``; cancel it when the client leaves.

    Nobody watches the client of work that waits for nothing.

    Raises:
        ClientDisconnect: the client left first.
    """
    try:
        waits_for = work.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    task = asyncio.current_task()
    assert task is not None
    left = False

    def leave(watcher: asyncio.Task[None]) -> None:
        nonlocal left
        left = not watcher.cancelled()
        if left:
            task.cancel()

    watcher = asyncio.create_task(_disconnected(receive))
    watcher.add_done_callback(leave)
    try:
        return await _Begun(work, waits_for)
    except asyncio.CancelledError:
        if left and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        watcher.remove_done_callback(leave)
        watcher.cancel()


class _Begun(Awaitable[Result]):
    """The rest of ``work``, which waits for what it gave last."""

    def __init__(self, work: Coroutine[Any, None, Result], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, None, Result]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    yield waits_for
                except BaseException as error:
                    waits_for = self._work.throw(error)
                else:
                    waits_for = self._work.send(None)
            except StopIteration as done:
                result: Result = done.value
                return result


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends ``events``, framed and as many as came together, and closes them whatever happens.

    What fails before the first event is an ordinary error response; later it is an event. The
    headers wait for the first event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        shorten: Callable[[Shortcut], None] | None = None,
    ) -> None:
        """``shorten``: told, once the answer has begun, of a way that events may take instead."""
        super().__init__(headers={**HEADERS, **headers})
        del self.headers["content-length"]  # of the empty body that Response assumed
        self.events = events
        self.shorten = shorten

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await unless_disconnected(receive, self._stream(scope, receive, send))

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        headers = self.raw_headers
        last = DONE
        try:
            async for events in self.events:
                if started:
                    await _send_body(send, events)
                    continue
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await _send_body(send, events)
                past = shortcut(scope)
                if past is not None and self.shorten is not None:
                    self.shorten(past)
        except ClientDisconnect:
            raise
        except Exception as error:
            failure = seen(error)
            if not started:
                await failure.response()(scope, receive, send)
                return
            record_of(scope).fail(failure.code, failure.param)
            last = b"data: " + failure.json() + b"\n\n" + DONE
        finally:
            await self.events.aclose()
        await send({"type": "http.response.body", "body": last, "more_body": False})


async def _send_body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def seen(error: Exception) -> ApiError:
    """What the client sees of ``error``; a surprise is logged."""
    failure = from_exception(error)
    if type(failure) is ApiError and failure is not error:
        error_log.error("request %s failed", request_id.get(), exc_info=error)
    return failure
