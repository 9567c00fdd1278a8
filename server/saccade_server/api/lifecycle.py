"""Serving, draining, stopping: what the server is doing, and the work it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Lifecycle:
    """Counts the requests in flight and ends them in order.

    The process calls :meth:`shutdown` on SIGTERM *before* it closes its sockets, so that probes
    see the drain and requests in flight can finish.
    """

    def __init__(self) -> None:
        self.draining = False
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.stopped = False
        self.abandoned = False
        self._stops: set[Callable[[], None]] = set()
        self._open: set[asyncio.Task[None]] = set()

    @contextmanager
    def track(self) -> Iterator[None]:
        """Count one request while it is being answered."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    @contextmanager
    def on_stop(self, stop: Callable[[], None]) -> Iterator[None]:
        """Have ``stop`` called once the server will not wait any longer, at once if it does not."""
        if self.stopped:
            stop()
        self._stops.add(stop)
        try:
            yield
        finally:
            self._stops.discard(stop)

    @contextmanager
    def abandonable(self) -> Iterator[asyncio.Task[None]]:
        """Have the current task cancelled if nothing else ends it; gives that task."""
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            yield task
        finally:
            self._open.discard(task)

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.draining = True

    def stop(self) -> None:
        """End what is still being generated, each with an error."""
        self.drain()
        self.stopped = True
        for stop in tuple(self._stops):
            stop()

    async def abandon(self, seconds: float) -> None:
        """Cancel what is still open, and give it a moment to say so."""
        self.stop()
        self.abandoned = True
        for task in tuple(self._open):
            task.cancel()
        if self._open:
            await asyncio.wait(tuple(self._open), timeout=seconds)

    async def shutdown(self, timeout: float, grace: float = 2.0) -> None:
        """Drain; after ``timeout`` seconds stop; abandon what is left ``grace`` seconds later.

        Returns once idle, but for tasks that do not even end when they are cancelled.
        """
        self.drain()
        if not await self._wait(timeout):
            self.stop()
            await self._wait(grace)
        await self.abandon(grace)

    async def _wait(self, timeout: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True
