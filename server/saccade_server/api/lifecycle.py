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
        self._stops: set[Callable[[], None]] = set()

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
        """Have ``stop`` called if the server will not wait any longer."""
        self._stops.add(stop)
        try:
            yield
        finally:
            self._stops.discard(stop)

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.draining = True

    def stop(self) -> None:
        """End what is still being generated, each with an error."""
        self.drain()
        for stop in tuple(self._stops):
            stop()

    async def shutdown(self, timeout: float, grace: float = 2.0) -> None:
        """Drain; after ``timeout`` seconds stop; return once idle or ``grace`` seconds later."""
        self.drain()
        if not await self._wait(timeout):
            self.stop()
            await self._wait(grace)

    async def _wait(self, timeout: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True
