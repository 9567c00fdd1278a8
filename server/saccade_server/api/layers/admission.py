"""Who is let in: nobody new in a shutdown, and no more at once than the server may answer.

A request takes its place when its body is there, so that a slow one keeps no place from others, and
keeps it until its client has read the answer. What asks how the server is needs no place. Where
there are several keys none may take all places: each has at most :data:`SHARE` times as many as are
free, so that there are always some for the others (dynamic thresholds, Choudhury and Hahne 1998).

A request for answers is counted in the backlog too, and refused if it would wait too long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.access.keys import KeyRing, caller
from saccade_server.api.access.standing import current_ticket, patience
from saccade_server.api.backlog import Backlog
from saccade_server.api.deadline import Deadline, asked_seconds, current_deadline
from saccade_server.api.errors import ApiError, Unavailable, draining
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.api.settings import ApiSettings

READINESS = frozenset({"/ready", "/health"})
PROBES = READINESS | {"/live"}
"""Routes that answer without a key, to any Host, and while draining."""

METRICS = "/metrics"

WITHOUT_PLACE = PROBES | {METRICS, "/load", "/version", "/v1/models"}
MODELS = "/v1/models/"

PIECE_BYTES = 64 * 1024

ANSWERING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/score"})
"""Routes whose requests wait for the engine."""

PRIORITY = b'"priority"'
"""What a body holds that says how urgent it is."""

SHARE = 4
"""Places that one of several keys may have for each that is free."""

WITH_BODY = frozenset({"POST", "PUT"})
"""Methods whose bodies routes read."""

CROWDED = "crowded"
"""Set in the state of a request whose connection is one too many."""


def open_routes(settings: ApiSettings) -> frozenset[str]:
    """Routes that answer anybody, whatever the key and the Host."""
    return PROBES | {METRICS} if settings.open_metrics else PROBES


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

    def __init__(
        self,
        app: ASGIApp,
        lifecycle: Lifecycle,
        settings: ApiSettings,
        keys: KeyRing,
        backlog: Backlog,
    ) -> None:
        self.app = app
        self.lifecycle = lifecycle
        self.settings = settings
        self.keys = keys
        self.backlog = backlog
        self.held: Counter[str] = Counter()  # places, by the names of keys

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
        has_body = scope["method"] in WITH_BODY  # nothing else waits for anything
        with ExitStack() as place:

            def take(body: bytes = b"") -> None:
                nonlocal taken
                refusal = self._refusal()
                if refusal is not None:
                    raise refusal
                if has_body:
                    most = self.settings.request_timeout
                    deadline = Deadline(asked_seconds(Headers(scope=scope), most))
                    if scope["path"] in ANSWERING:
                        self._queue(place, deadline, body)
                    current_deadline.set(deadline)
                place.enter_context(self.lifecycle.track())
                place.enter_context(self._counted(caller.get().name))
                taken = True

            async def placed_receive() -> Message:
                message = await receive()
                if not taken and message["type"] == "http.request":
                    take(message.get("body", b""))
                return message

            async def piecewise_send(message: Message) -> None:
                for piece in _pieces(message):
                    await send(piece)

            if not has_body:  # read_out.py has read what came with it
                take()
            await self.app(scope, placed_receive, piecewise_send)

    def _queue(self, place: ExitStack, deadline: Deadline, body: bytes) -> None:
        """Count a request in the backlog.

        Raises:
            Unavailable: it would wait too long; one that names its priority is asked again later.
        """
        key = caller.get()
        if PRIORITY not in body:
            longest = patience(deadline, self.settings.max_queue_time)
            self.backlog.check(key.name, key.priority, 1, longest)
        ticket = self.backlog.enter(key.name, key.priority)
        place.callback(ticket.leave)
        current_ticket.set(ticket)

    @contextmanager
    def _counted(self, owner: str) -> Iterator[None]:
        self.held[owner] += 1
        try:
            yield
        finally:
            self.held[owner] -= 1
            if not self.held[owner]:
                del self.held[owner]

    def _refusal(self, crowded: bool = False) -> ApiError | None:
        if self.lifecycle.draining:
            return draining()
        if crowded:
            return Unavailable("Too many connections at once.", close=True)
        free = self.settings.max_requests - self.lifecycle.in_flight
        if free <= 0:
            return Unavailable("Too many requests at once.")
        if len(self.keys.keys) > 1 and self.held[caller.get().name] >= SHARE * free:
            return Unavailable("Too many requests at once with this key.")
        return None
