"""Reading what no route reads: the rest of a refused body, and one that nobody asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.layers.admission import WITH_BODY
from saccade_server.api.settings import ApiSettings

DISCARD_SECONDS = 5.0


class ReadOut:
    """Reads the rest of a refused body before the refusal is sent, within bounds.

    A server that closes a connection with unread bytes resets it, and the client then sees the
    reset instead of the refusal. Who sends ``Expect: 100-continue`` has not sent the body yet.

    A body of a method that needs none is read, within the same bounds, before anything else is
    done: read when it is answered, such a request would keep a place while its body is due.
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

        if scope["method"] in WITH_BODY:
            await self.app(scope, watched_receive, late_send)
        else:
            await _discard(watched_receive, lambda: complete, self.limit)
            await self.app(scope, receive, send)


async def _discard(receive: Receive, complete: Callable[[], bool], limit: int) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while limit > 0 and not complete():
                limit -= len((await receive()).get("body", b""))
