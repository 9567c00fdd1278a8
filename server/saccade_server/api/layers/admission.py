"""Who is let in: nobody new in a shutdown, and no more at once than the server may answer.

A request takes its place when its body is there, so that a slow one keeps no place from others, and
keeps it until its client has read the answer. What asks how the server is needs no place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.errors import ApiError, Unavailable, draining
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.api.settings import ApiSettings

READINESS = frozenset({"/ready", "/health"})
PROBES = READINESS | {"/live"}
"""Routes that answer without a key, to any Host, and while draining."""

WITHOUT_PLACE = PROBES | {"/load", "/version", "/v1/models"}
MODELS = "/v1/models/"

PIECE_BYTES = 64 * 1024

WITH_BODY = frozenset({"POST", "PUT"})
"""Methods whose bodies routes read."""

CROWDED = "crowded"
"""Set in the state of a request whose connection is one too many."""


def needs_place(path: str) -> bool:
    """False for what asks how the server is, and is answered in every trouble."""
    return path not in WITHOUT_PLACE and not path.startswith(MODELS)


def _pieces(message: Message) -> Iterator[Message]:
    """A message that holds much of an answer as several.

    Sending waits while more than a little lies unread, but takes whatever it is given: an answer in
    one piece would be done, and its place free, with all of it still in memory.
    """
    body = message.get("body", b"")
    last = max(0, len(body) - 1) // PIECE_BYTES * PIECE_BYTES
    for start in range(0, last, PIECE_BYTES):
        yield {**message, "body": body[start : start + PIECE_BYTES], "more_body": True}
    yield {**message, "body": body[last:]} if last else message


class Admission:
    """Counts the requests being answered; refuses too many, and all new ones in a shutdown."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, settings: ApiSettings) -> None:
        self.app = app
        self.lifecycle = lifecycle
        self.most = settings.max_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        crowded = scope.get("state", {}).get(CROWDED, False)
        placed = needs_place(path)
        # Whoever asks whether requests are welcome hears what a request would.
        refusal = self._refusal(crowded) if placed or path in READINESS else None
        if refusal is not None:
            await refusal.response()(scope, receive, send)
        elif placed:
            await self._answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken = False
        with ExitStack() as place:

            def take() -> None:
                nonlocal taken
                refusal = self._refusal()
                if refusal is not None:
                    raise refusal
                place.enter_context(self.lifecycle.track())
                taken = True

            async def placed_receive() -> Message:
                message = await receive()
                if not taken and message["type"] == "http.request":
                    take()
                return message

            async def piecewise_send(message: Message) -> None:
                for piece in _pieces(message):
                    await send(piece)

            if scope["method"] not in WITH_BODY:  # read_out.py has read what came with it
                take()
            await self.app(scope, placed_receive, piecewise_send)

    def _refusal(self, crowded: bool = False) -> ApiError | None:
        if self.lifecycle.draining:
            return draining()
        if crowded:
            return Unavailable("Too many connections at once.", close=True)
        if self.lifecycle.in_flight >= self.most:
            return Unavailable("Too many requests at once.")
        return None
