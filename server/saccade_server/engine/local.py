"""An engine in a thread of this process: for tests, and for one-off generation."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterable

from saccade_server.engine.core import EngineCore
from saccade_server.engine.heartbeat import Progress
from saccade_server.engine.loop import run_loop
from saccade_server.engine.messages import Command, Failed, Ready, Reply, Shutdown
from saccade_server.engine.streams import StreamingClient


class LocalEngine(StreamingClient):
    """Runs ``core`` on a thread of its own. Make it on a running event loop."""

    def __init__(self, core: EngineCore) -> None:
        super().__init__()
        self._core = core
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._event_loop = asyncio.get_running_loop()
        self._progress = Progress()
        self._thread = threading.Thread(target=self._serve, name="saccade-engine", daemon=True)
        self._receive(Ready(core.info))
        self._thread.start()
        self._watching = asyncio.create_task(self._watch_progress(lambda: self._progress.beat))

    async def close(self) -> None:
        """Stop the engine and wait until it has ended."""
        self._watching.cancel()
        self._commands.put(Shutdown())
        await asyncio.to_thread(self._thread.join)
        self._die("the engine was closed")

    def _send(self, command: Command) -> None:
        self._commands.put(command)

    def _serve(self) -> None:
        try:
            run_loop(self._core, self._take, self._reply, self._progress)
        except Exception as error:
            self._reply(Failed(f"{type(error).__name__}: {error}"))

    def _reply(self, reply: Reply) -> None:
        self._event_loop.call_soon_threadsafe(self._receive, reply)

    def _take(self, wait: bool) -> Iterable[Command]:
        if wait:
            yield self._commands.get()
        while True:
            try:
                yield self._commands.get_nowait()
            except queue.Empty:
                return
