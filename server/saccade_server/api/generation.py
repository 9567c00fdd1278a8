"""One HTTP request's sequences: submitted together, merged, turned into text, always cleaned up.

Tokens become text here and nowhere else. Text that may yet turn out to be a stop string or half a
character is held back, and so are the logprobs of its tokens. A sequence that hit a stop string is
aborted in the engine and then waited for, because its last output carries the receipt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from saccade_interventions.errors import Code, InterventionError
from saccade_server.api.deadline import Deadline, too_late
from saccade_server.api.errors import EngineFailure, draining
from saccade_server.api.layers.observe import error_log, request_id
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.api.receipts import Run
from saccade_server.api.stops import StopStrings
from saccade_server.engine.client import EngineClient
from saccade_server.engine.request import (
    EngineOutput,
    FinishReason,
    GenerateRequest,
    TokenLogprobs,
)

CONFIRM_SECONDS = 5.0
"""How long an aborted sequence may take to report what it did."""


class Decoder(Protocol):
    """Tokens in, text out; holds back unfinished characters."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


@dataclass(frozen=True)
class Delta:
    """What is new about one choice. ``offsets`` are where the texts of ``logprobs`` begin."""

    index: int
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    offsets: tuple[int, ...] = ()
    finish_reason: str | None = None


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
    ) -> None:
        """``methods``: the interventions of the request, for its error."""
        self.index = index
        self.request = request
        self.completion_tokens = 0
        self.done = False
        self.run = Run(request.plan)
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

    def accept(self, output: EngineOutput) -> Delta:
        """Take what the engine sent; the result may say nothing new."""
        text = ""
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
        if entry is not None:
            self._waiting.append((self._decoded, start, entry))
        if self.completion_tokens <= self._least:
            return self._stops.skip(piece)
        return self._stops.push(piece)

    def _delta(self, text: str, finish_reason: str | None = None) -> Delta:
        self._shown += len(text)
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


def diverged(methods: Sequence[str]) -> InterventionError:
    """The error of a sequence whose numbers overflowed under these methods."""
    message = (
        f"The model's numbers overflowed under the request's interventions ({', '.join(methods)}): "
        "they are too strong for this model and its precision. Lower their strengths."
    )
    return InterventionError(Code.DIVERGED, message, "interventions")


_Event = tuple[Choice | None, EngineOutput | Exception | None]


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
    ) -> None:
        self.choices = choices
        self._engine = engine
        self._lifecycle = lifecycle
        self._deadline = deadline
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._exit = ExitStack()

    @property
    def runs(self) -> list[Run]:
        """What each sequence did under its plan."""
        return [choice.run for choice in self.choices]

    async def __aenter__(self) -> Generation:
        self._exit.enter_context(self._lifecycle.on_stop(lambda: self._fail(draining())))
        self._tasks = [asyncio.create_task(self._pump(choice)) for choice in self.choices]
        self._later(self._deadline.left, None, too_late())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._exit.close()
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for choice in self.choices:
            if not choice.done:
                await self._engine.abort(choice.request.request_id)

    async def deltas(self) -> AsyncIterator[Delta]:
        """Everything new about any choice, in the order it happens.

        Raises:
            ApiError, CapacityError, EngineDeadError: the whole request has failed.
        """
        while not all(choice.done for choice in self.choices):
            choice, event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            if choice is None or choice.done:
                continue
            was_stopped = choice.stopped
            delta = choice.give_up() if event is None else choice.accept(event)
            if choice.stopped and not was_stopped and not choice.done:
                await self._engine.abort(choice.request.request_id)
                self._later(CONFIRM_SECONDS, choice, None)
            if delta.text or delta.logprobs or delta.finish_reason:
                yield delta

    async def _pump(self, choice: Choice) -> None:
        try:
            async for output in self._engine.submit(choice.request):
                self._events.put_nowait((choice, output))
            self._events.put_nowait((choice, None))
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._events.put_nowait((None, error))

    def _later(self, delay: float, choice: Choice | None, event: Exception | None) -> None:
        put = self._events.put_nowait
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(delay, put, (choice, event)))
