"""One HTTP request's sequences: submitted together, merged, turned into text, always cleaned up.

Tokens become text here and nowhere else. Text that may yet turn out to be a stop string or half a
character is held back, and so are the logprobs of its tokens. A sequence that hit a stop string is
aborted in the engine and then waited for, because its last output carries the receipt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from saccade_server.api.deadline import Deadline, too_late
from saccade_server.api.errors import EngineFailure, draining
from saccade_server.api.layers.observe import error_log, request_id
from saccade_server.api.layers.shortcut import Shortcut
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.api.stops import StopStrings
from saccade_server.engine.client import EngineClient, News
from saccade_server.engine.mailbox import Mailbox
from saccade_server.engine.request import (
    EngineOutput,
    FinishReason,
    GenerateRequest,
    TokenLogprobs,
)
from saccade_server.requests.detection import Detection
from saccade_server.requests.errors import diverged
from saccade_server.requests.receipts import Run
from saccade_server.requests.scores import ScoreLog
from saccade_server.requests.traces.resolve import TracePlan

CONFIRM_SECONDS = 5.0
"""How long an aborted sequence may take to report what it did."""


class Decoder(Protocol):
    """Tokens in, text out; holds back unfinished characters."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class Delta(msgspec.Struct, frozen=True):
    """What is new about one choice. ``offsets`` are where the texts of ``logprobs`` begin.

    ``trace`` and ``detectors`` come with the last delta of a choice that has some, once they are
    made; the first is JSON.
    """

    index: int
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    offsets: tuple[int, ...] = ()
    finish_reason: str | None = None
    trace: msgspec.Raw | None = None
    detectors: list[dict[str, Any]] | None = None


class Choice:
    """One sequence as the client sees it."""

    def __init__(
        self,
        index: int,
        request: GenerateRequest,
        decoder: Decoder,
        stops: StopStrings,
        end_tokens: frozenset[int],
        methods: tuple[str, ...] = (),
        trace: TracePlan | None = None,
        detection: Detection | None = None,
        shows_logprobs: bool = True,
    ) -> None:
        """``methods``: the interventions of the request, for its error.

        ``shows_logprobs``: False if none but detectors asked for them.
        """
        self.index = index
        self.request = request
        self.completion_tokens = 0
        self.done = False
        self.run = Run(request.plan)
        self.trace = trace
        self.pieces = None if trace is None else trace.collect()
        self.scores = ScoreLog.of(request)
        self.watched = None if detection is None else detection.collect()
        self._shows_logprobs = shows_logprobs
        self._decoder = decoder
        self._stops = stops
        self._least = request.sampling.min_tokens
        self._end_tokens = end_tokens
        self._methods = methods
        self._decoded = 0  # characters that left the decoder
        self._shown = 0
        self._waiting: list[tuple[int, int, TokenLogprobs]] = []  # end, start, entry

    @property
    def stopped(self) -> bool:
        """A stop string was found."""
        return self._stops.stopped

    @property
    def last_row(self) -> int:
        """Position of the last row that must have run for what is known; -1: none must have."""
        if self.completion_tokens == 0 and not self.done:
            return -1
        known = len(self.request.tokens) + len(self.request.given)
        return known + max(self.completion_tokens, 1) - 2

    def accept(self, news: int | EngineOutput) -> Delta:
        """Take what the engine sent; the result may say nothing new."""
        if isinstance(news, int):
            return self._accept_token(news)
        return self._accept_output(news)

    def _accept_token(self, token: int) -> Delta:
        if self.stopped:
            return self._delta("")
        self.completion_tokens += 1
        return self._delta(self._decode(token, None))

    def _accept_output(self, output: EngineOutput) -> Delta:
        text = ""
        if self.scores is not None:
            self.scores.take(output.trace)
        logprobs = iter(output.logprobs)
        last = len(output.tokens) - 1
        for position, token in enumerate(output.tokens):
            if self.stopped:
                break
            self.completion_tokens += 1
            entry = next(logprobs, None)
            ends = output.finish_reason is FinishReason.STOP and position == last
            if not (ends and token in self._end_tokens):
                text += self._decode(token, entry)
        for traced in (self.pieces, self.watched):
            if traced is not None:
                traced.add(output.trace, self.completion_tokens)
        if output.finish_reason is None:
            return self._delta(text)
        self.done = True
        self.run = Run(self.request.plan, output.receipt, output.cached_tokens)
        if not self.stopped:
            text += self._stops.push(self._decoder.flush())
            text += self._stops.flush()
        return self._delta(text, self._finish(output))

    def give_up(self) -> Delta:
        """The engine ended without a last output."""
        if not self.stopped:
            raise EngineFailure()
        self.done = True
        return self._delta("", "stop")

    def _decode(self, token: int, entry: TokenLogprobs | None) -> str:
        piece = self._decoder.push(token)
        start = self._decoded
        self._decoded += len(piece)
        if self.watched is not None:
            self.watched.say(token, None if entry is None else entry.logprob)
        if entry is not None and self._shows_logprobs:
            self._waiting.append((self._decoded, start, entry))
        if self.completion_tokens <= self._least:
            return self._stops.skip(piece)
        return self._stops.push(piece)

    def _delta(self, text: str, finish_reason: str | None = None) -> Delta:
        self._shown += len(text)
        if not self._waiting:
            return Delta(self.index, text, finish_reason=finish_reason)
        ready = [item for item in self._waiting if item[0] <= self._shown]
        self._waiting = self._waiting[len(ready) :]
        logprobs = tuple(entry for _, _, entry in ready)
        offsets = tuple(start for _, start, _ in ready)
        return Delta(self.index, text, logprobs, offsets, finish_reason)

    def _finish(self, output: EngineOutput) -> str:
        if self.stopped:
            return "stop"
        match output.finish_reason:
            case FinishReason.STOP:
                return "stop"
            case FinishReason.LENGTH:
                return "length"
        error_log.error("request %s: engine: %s", request_id.get(), output.error)
        if output.diverged:
            raise diverged(self._methods)
        raise EngineFailure()


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
        deadline: Deadline,
        at_once: bool = True,
        room: AbstractContextManager[None] | None = None,
        leads: bool = False,
    ) -> None:
        """``at_once``: tokens are wanted as they come, not only when there is more than tokens.

        ``room`` is held while it lasts. The first choice ``leads``: the others begin once it has
        ended, and find what it has computed of their prompt.
        """
        self.choices = choices
        self._engine = engine
        self._lifecycle = lifecycle
        self.deadline = deadline
        self._mailbox: Mailbox[_Event] = Mailbox()
        self._at_once = at_once
        self._room = room
        self._led = tuple(choices[1:]) if leads else ()
        self._silence: _Silence | None = None
        self._past: Shortcut | None = None
        self._tell: Callable[[Delta], bytes]
        self._closers: list[Callable[[], None]] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._exit = ExitStack()

    @property
    def runs(self) -> list[Run]:
        """What each sequence did under its plan."""
        return [choice.run for choice in self.choices]

    async def __aenter__(self) -> Generation:
        self._exit.enter_context(self._lifecycle.on_stop(lambda: self._fail(draining())))
        try:
            if self._room is not None:
                self._exit.enter_context(self._room)
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

    async def __aexit__(self, *error: object) -> None:
        self._close()

    async def told(
        self, tell: Callable[[Delta], Told], patience: float | None = None
    ) -> AsyncIterator[list[Told]]:
        """Have ``tell`` make something of each thing that is new about a choice, in order.

        Gives what was made of news that came together; after ``patience`` seconds without any, an
        empty list. When ``tell`` is called, later news have not been looked at.

        Raises:
            ApiError, CapacityError, EngineDeadError: the whole request has failed.
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
        return delta if delta.text or delta.logprobs or delta.finish_reason else None

    def _deliver(self, choice: Choice, news: News) -> None:
        if not isinstance(news, int):
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

    def _fail(self, error: Exception) -> None:
        self._mailbox.put((None, error))

    def _later(self, delay: float, choice: Choice | None, event: Exception | None) -> None:
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(delay, self._mailbox.put, (choice, event)))


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
