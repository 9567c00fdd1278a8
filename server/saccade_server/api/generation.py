"""One HTTP request's sequences: submitted together, merged, always cleaned up.

A sequence that hit a stop string is aborted in the engine and then waited for, because its last
output carries the receipt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import TypeVar

from saccade_server.api.access.standing import Standing
from saccade_server.api.choice import Choice, Delta
from saccade_server.api.deadline import too_late
from saccade_server.api.errors import draining
from saccade_server.api.layers.shortcut import Shortcut
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.engine.client import EngineClient, EngineDeadError, News
from saccade_server.engine.mailbox import Mailbox
from saccade_server.engine.request import EngineOutput
from saccade_server.requests.receipts import Run

CONFIRM_SECONDS = 5.0
"""How long an aborted sequence may take to report what it did."""


Told = TypeVar("Told")

_Event = tuple[Choice | None, News | Exception | None]
"""News of a choice, or that it is waited for no longer; an error of the whole request; or, with
neither, that nothing was said for a while."""


class Generation:
    """The choices of one request, generated side by side.

    Use as an async context manager: leaving it, however that happens, aborts what still runs.
    """

    def __init__(
        self,
        engine: EngineClient,
        lifecycle: Lifecycle,
        choices: Sequence[Choice],
        stands: Standing,
        at_once: bool = True,
        room: AbstractContextManager[None] | None = None,
        leads: bool = False,
    ) -> None:
        """``at_once``: tokens are wanted as they come, not only when there is more than tokens.

        ``room`` is held while it lasts. The first choice ``leads``: the others begin once it has
        ended, and find what it has computed of their prompt. ``began`` and ``first_token`` are when
        the first went to the engine and its first token came, by ``time.monotonic``; 0: not yet.
        """
        self.choices = choices
        self._engine = engine
        self._lifecycle = lifecycle
        self.deadline = stands.deadline
        self._stands = stands
        self._ticket = stands.ticket
        self._mailbox: Mailbox[_Event] = Mailbox()
        self._at_once = at_once
        self._room = room
        self._led = tuple(choices[1:]) if leads else ()
        self._silence: _Silence | None = None
        self._past: Shortcut | None = None
        self._tell: Callable[[Delta], bytes]
        self._closers: list[Callable[[], None]] = []
        self._timers: list[asyncio.TimerHandle] = []
        self.began = 0.0
        self.first_token = 0.0
        self._exit = ExitStack()

    @property
    def runs(self) -> list[Run]:
        """What each sequence did under its plan."""
        return [choice.run for choice in self.choices]

    async def __aenter__(self) -> Generation:
        self._exit.enter_context(self._lifecycle.on_stop(lambda: self._fail(draining())))
        try:
            if self._lifecycle.stopped:
                raise draining()
            if self._room is not None:
                self._exit.enter_context(self._room)
            self.began = time.monotonic()
            self._open(self.choices[: len(self.choices) - len(self._led)])
        except BaseException:
            self._close()
            raise
        self._later(self.deadline.left, None, too_late())
        return self

    def _open(self, choices: Sequence[Choice]) -> None:
        for choice in choices:
            deliver = partial(self._deliver, choice)
            self._closers.append(self._engine.open(choice.request, deliver))
            choice.began, choice.outcome = time.monotonic(), "abort"

    async def __aexit__(self, *error: object) -> None:
        self._close()

    async def told(
        self, tell: Callable[[Delta], Told], patience: float | None = None
    ) -> AsyncIterator[list[Told]]:
        """Have ``tell`` make something of each thing that is new about a choice, in order.

        Gives what was made of news that came together; after ``patience`` seconds without any, an
        empty list. When ``tell`` is called, later news have not been looked at.

        Raises:
            ApiError, EngineDeadError, CapacityError: the whole request has failed.
        """
        silence = self._silence = _Silence(patience, lambda: self._mailbox.put((None, None)))
        try:
            while not all(choice.done for choice in self.choices):
                found: list[Told] = []
                failure: Exception | None = None
                silent = False
                for choice, news in await self._mailbox.take():
                    try:
                        delta = self._take(choice, news)
                        if delta is not None:
                            found.append(tell(delta))
                    except Exception as error:
                        failure = error
                        break
                    silent = silent or (choice is None and news is None)
                if found:
                    silence.broken()
                if found or silent:
                    yield found
                if failure is not None:
                    raise failure
        finally:
            silence.end()

    def shorten(self, tell: Callable[[Delta], bytes], past: Shortcut) -> None:
        """Have what ``tell`` makes of a token written as soon as the token comes.

        Whoever iterates over :meth:`told` meanwhile gets everything else, in its place, and tokens
        too where the connection, or the reader itself, is not ready.
        """
        self._past = past
        self._tell = tell

    def _take(self, choice: Choice | None, news: News | Exception | None) -> Delta | None:
        if isinstance(news, Exception):
            if choice is not None and isinstance(news, EngineDeadError):
                choice.outcome = "error"
            raise news
        if choice is None or choice.done:
            return None
        was_stopped = choice.stopped
        delta = choice.give_up() if news is None else choice.accept(news)
        if choice.stopped and not was_stopped and not choice.done:
            self._engine.abort(choice.request.request_id)
            self._later(CONFIRM_SECONDS, choice, None)
        if self._led and choice.done:
            led, self._led = self._led, ()
            self._open(led)
        return delta if delta.says else None

    def _deliver(self, choice: Choice, news: News) -> None:
        if not self.first_token and (isinstance(news, int) or _says(news)):
            self.first_token = time.monotonic()
            self._ticket.begun()
        if not isinstance(news, int):
            if isinstance(news, EngineOutput) and news.finish_reason is not None:
                self._ticket.ended(news.timing)  # now, even if its client reads slowly
            self._mailbox.put((choice, news))
        elif not self._at_once:
            self._mailbox.leave((choice, news))
        elif self._past is not None and self._mailbox.waited_for and self._past.writable:
            self._write_past(self._past, choice, news)
        else:
            self._mailbox.put((choice, news))

    def _write_past(self, past: Shortcut, choice: Choice, token: int) -> None:
        try:
            delta = self._take(choice, token)
            if delta is not None:
                past.write_piece(self._tell(delta))
                if self._silence is not None:
                    self._silence.broken()
        except Exception as error:
            self._fail(error)

    def _close(self) -> None:
        self._past = None
        self._exit.close()
        for timer in self._timers:
            timer.cancel()
        for close in self._closers:
            close()
        for choice, news in self._mailbox.rest():
            if choice is not None:
                choice.note_unread(news)
        self._stands.end(sum(choice.completion_tokens for choice in self.choices))
        self._ticket.leave(choice.computed_tokens for choice in self.choices if choice.done)

    def _fail(self, error: Exception) -> None:
        self._mailbox.put((None, error))

    def _later(self, delay: float, choice: Choice | None, event: Exception | None) -> None:
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(delay, self._mailbox.put, (choice, event)))


def _says(news: News) -> bool:
    return isinstance(news, EngineOutput) and bool(news.tokens)


class _Silence:
    """Tells of every ``seconds`` in which nothing broke it."""

    def __init__(self, seconds: float | None, tell: Callable[[], None]) -> None:
        self._seconds = seconds or 0.0
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        if seconds is not None:
            self._timer = self._loop.call_later(seconds, self._look)

    def broken(self) -> None:
        """Something was said."""
        self._since = self._loop.time()

    def end(self) -> None:
        """Tell nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._since + self._seconds:
            self._since = now
            self._tell()
        self._timer = self._loop.call_at(self._since + self._seconds, self._look)
