"""The last word to requests that the server will not wait for: an error, not a cut connection.

What is being generated is told by :meth:`Lifecycle.stop` and ends by itself. The rest may be
anywhere: its body still arrives, its images are decoded, its client does not read.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.errors import draining
from saccade_server.api.lifecycle import Lifecycle


class EndUnanswered:
    """Answers requests that the lifecycle abandons before their answers began; only the log is
    outside of it.
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
            except asyncio.CancelledError:
                if started or not self.lifecycle.abandoned:
                    raise
                task.uncancel()
            await draining().response()(scope, receive, send)
