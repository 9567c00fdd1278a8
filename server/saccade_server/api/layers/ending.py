"""The last word to requests that nothing else answers: an error, not a cut connection.

What is being generated when the server waits no longer is told by :meth:`Lifecycle.stop` and ends
by itself. The rest may be anywhere: its body still arrives, its images are decoded, its client does
not read. And a request may fail of what nobody foresaw.
"""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.errors import ApiError, begun, draining, from_exception
from saccade_server.api.layers.observe import error_log
from saccade_server.api.layers.record import record_of
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.logs.context import request_id


class EndUnanswered:
    """Answers requests that the lifecycle abandons before their answers began, and surprises.

    Outside of it are only the log and the headers that let a page read what it says.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app = app
        self.lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def noted_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        with self.lifecycle.abandonable() as task:
            try:
                await self.app(scope, receive, noted_send)
                return
            except ClientDisconnect:
                raise
            except asyncio.CancelledError:
                if started or not self.lifecycle.abandoned:
                    raise
                task.uncancel()
                failure: ApiError = draining()
                if record_of(scope).began_work:  # no other server is to do it once more
                    failure = from_exception(begun(failure))
            except Exception as error:
                error_log.exception("request %s failed", request_id.get())
                failure = from_exception(error)
            if not started:
                await failure.response()(scope, receive, send)
