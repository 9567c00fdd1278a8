"""The client's half of an engine, whatever carries the messages: who is told what of a step."""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from saccade_server.engine.client import CapacityError, EngineDeadError, News
from saccade_server.engine.heartbeat import BEAT_SECONDS, Beat
from saccade_server.engine.lending import PixelLender
from saccade_server.engine.mailbox import Mailbox
from saccade_server.engine.messages import (
    Abort,
    AskStats,
    Command,
    Failed,
    Outputs,
    Ready,
    Reply,
    Stats,
    Submit,
)
from saccade_server.engine.request import EngineInfo, EngineOutput, EngineStats, GenerateRequest
from saccade_server.engine.watchdog import Lag, Watchdog


@dataclass(frozen=True, slots=True)
class _Open:
    """A sequence that has not ended."""

    request: GenerateRequest
    number: int
    deliver: Callable[[News], None]


class StreamingClient(ABC):
    """Implements open, submit, abort and stats over :meth:`_send` and :meth:`_receive`.

    Lives on one event loop. Subclasses carry messages and call :meth:`_die` when the engine ends.
    """

    def __init__(self) -> None:
        self._info: EngineInfo | None = None
        self._ready: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self._sequences: dict[str, _Open] = {}
        self._numbered: dict[int, _Open] = {}
        self._tickets: dict[int, asyncio.Future[EngineStats]] = {}
        self._numbers = itertools.count()
        self._dead: EngineDeadError | None = None
        self._lender = PixelLender(self._send)
        self._watchdog = Watchdog()

    @property
    def info(self) -> EngineInfo:
        """The loaded model and the engine's limits."""
        if self._info is None:
            raise RuntimeError("the engine has not started")
        return self._info

    @property
    def alive(self) -> bool:
        """False once the engine has died or was closed."""
        return self._dead is None

    @property
    def full(self) -> bool:
        """See :attr:`EngineClient.full`."""
        return len(self._sequences) >= self.info.max_num_seqs + self.info.max_waiting

    @property
    def lag(self) -> Lag:
        """See :attr:`EngineClient.lag`."""
        return self._watchdog.lag

    def open(self, request: GenerateRequest, deliver: Callable[[News], None]) -> Callable[[], None]:
        """See :meth:`EngineClient.open`."""
        self._check_alive()
        if self.full:
            raise CapacityError("the queue is full")
        if request.request_id in self._sequences:
            raise ValueError(f"request id {request.request_id!r} is in use")
        bare = self._lender.lend(request, self.info.max_pixel_bytes)
        sequence = _Open(request, next(self._numbers), deliver)
        self._sequences[request.request_id] = self._numbered[sequence.number] = sequence

        def close() -> None:
            if sequence.number in self._numbered:
                if self.alive:
                    self._send(Abort(request.request_id))
                self._forget(sequence)

        try:
            self._send(Submit(bare, sequence.number))
        except BaseException:
            self._forget(sequence)
            raise
        return close

    async def submit(self, request: GenerateRequest) -> AsyncIterator[EngineOutput]:
        """See :meth:`EngineClient.submit`."""
        mailbox: Mailbox[News] = Mailbox()
        close = self.open(request, mailbox.put)
        try:
            while True:
                for news in await mailbox.take():
                    if isinstance(news, EngineDeadError):
                        raise news
                    if isinstance(news, int):
                        yield EngineOutput(request_id=request.request_id, tokens=(news,))
                        continue
                    yield news
                    if news.finish_reason is not None:
                        return
        finally:
            close()

    def abort(self, request_id: str) -> None:
        """See :meth:`EngineClient.abort`."""
        if self.alive:
            self._send(Abort(request_id))

    async def stats(self) -> EngineStats:
        """See :meth:`EngineClient.stats`."""
        self._check_alive()
        ticket = next(self._numbers)
        answer: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._tickets[ticket] = answer
        try:
            self._send(AskStats(ticket))
            return await answer
        finally:
            self._tickets.pop(ticket, None)

    async def _watch_progress(self, heard: Callable[[], Beat | None]) -> None:
        """Have the watchdog take what was ``heard`` since it last asked, from now on."""
        while True:
            self._watchdog.tick(time.monotonic(), heard())
            await asyncio.sleep(BEAT_SECONDS)

    @abstractmethod
    def _send(self, command: Command) -> None:
        """Carry a command to the engine."""

    def _receive(self, reply: Reply) -> None:
        """Hand a reply to whoever waits for it."""
        if isinstance(reply, Outputs):
            self._deliver(reply)
        elif isinstance(reply, Stats):
            answer = self._tickets.get(reply.ticket)
            if answer is not None and not answer.done():
                answer.set_result(reply.stats)
        elif isinstance(reply, Ready):
            self._info = reply.info
            if not self._ready.done():
                self._ready.set_result(reply.info)
        elif isinstance(reply, Failed):
            self._die(reply.reason)

    def _deliver(self, news: Outputs) -> None:
        for number, token in zip(news.numbers, news.tokens, strict=True):
            sequence = self._numbered.get(number)
            if sequence is not None:
                sequence.deliver(token)
        for output in news.outputs:
            sequence = self._sequences.get(output.request_id)
            if sequence is not None:
                if output.finish_reason is not None:
                    self._forget(sequence)
                sequence.deliver(output)

    def _forget(self, sequence: _Open) -> None:
        """Forget a sequence, and take back what the engine was lent for it."""
        del self._numbered[sequence.number], self._sequences[sequence.request.request_id]
        self._lender.reclaim(sequence.request.all_images, self.alive)

    def _die(self, reason: str) -> None:
        """Tell everybody who waits that nothing more will come. Only the first reason counts."""
        if self._dead is not None:
            return
        self._dead = EngineDeadError(reason)
        if not self._ready.done():
            self._ready.set_exception(self._dead)
        for sequence in tuple(self._sequences.values()):
            self._forget(sequence)
            sequence.deliver(self._dead)
        for answer in self._tickets.values():
            if not answer.done():
                answer.set_exception(self._dead)

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise EngineDeadError(str(self._dead))
