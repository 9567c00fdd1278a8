"""The client's half of an engine, whatever carries the messages: one queue per open request."""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable

from saccade_server.engine.client import CapacityError, EngineDeadError
from saccade_server.engine.heartbeat import BEAT_SECONDS, Beat
from saccade_server.engine.lending import PixelLender
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


class StreamingClient(ABC):
    """Implements submit, abort and stats over :meth:`_send` and :meth:`_receive`.

    Lives on one event loop. Subclasses carry messages and call :meth:`_die` when the engine ends.
    """

    def __init__(self) -> None:
        self._info: EngineInfo | None = None
        self._ready: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self._streams: dict[str, asyncio.Queue[EngineOutput | EngineDeadError]] = {}
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
        return len(self._streams) >= self.info.max_num_seqs + self.info.max_waiting

    @property
    def lag(self) -> Lag:
        """See :attr:`EngineClient.lag`."""
        return self._watchdog.lag

    async def submit(self, request: GenerateRequest) -> AsyncIterator[EngineOutput]:
        """See :meth:`EngineClient.submit`."""
        self._check_alive()
        if self.full:
            raise CapacityError("the queue is full")
        if request.request_id in self._streams:
            raise ValueError(f"request id {request.request_id!r} is in use")
        bare = self._lender.lend(request, self.info.max_pixel_bytes)
        news: asyncio.Queue[EngineOutput | EngineDeadError] = asyncio.Queue()
        self._streams[request.request_id] = news
        finished = False
        try:
            self._send(Submit(bare))
            while not finished:
                output = await news.get()
                if isinstance(output, EngineDeadError):
                    finished = True
                    raise output
                finished = output.finish_reason is not None
                yield output
        finally:
            self._streams.pop(request.request_id, None)
            if not finished and self.alive:
                self._send(Abort(request.request_id))
            self._lender.reclaim(request.all_images, self.alive)

    async def abort(self, request_id: str) -> None:
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
            for output in reply.outputs:
                stream = self._streams.get(output.request_id)
                if stream is not None:
                    stream.put_nowait(output)
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

    def _die(self, reason: str) -> None:
        """Tell everybody who waits that nothing more will come. Only the first reason counts."""
        if self._dead is not None:
            return
        self._dead = EngineDeadError(reason)
        if not self._ready.done():
            self._ready.set_exception(self._dead)
        for stream in self._streams.values():
            stream.put_nowait(self._dead)
        for answer in self._tickets.values():
            if not answer.done():
                answer.set_exception(self._dead)

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise EngineDeadError(str(self._dead))
