"""An engine in its own process, so that HTTP work never delays a step and its death is seen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys

import msgspec
import zmq

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.environment import engine_environment
from saccade_server.engine.folder import PrivateFolder
from saccade_server.engine.heartbeat import Pulse
from saccade_server.engine.messages import Command, Shutdown, decode_reply, encode
from saccade_server.engine.streams import StreamingClient
from saccade_server.logs.setup import settings_now

logger = logging.getLogger(__name__)

STOP_TIMEOUT = 10.0
"""Seconds an engine gets to end by itself."""
READ_AT_ONCE = 4
"""Replies that are taken before anything else gets its turn."""
LARGE = 2**18
"""Bytes of a reply, a part of a trace, that is enough for a turn."""
START_TIMEOUT = 3600.0
"""Seconds for a model to be fetched, loaded, and its kernels compiled and captured."""


class RemoteEngine(StreamingClient):
    """Starts an engine process and talks to it over a socket file only this user can reach.

    The process ends with the thread that makes this, whatever happens to it.

    Raises:
        OSError: there is no place for the socket's file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folder = PrivateFolder("engine")
        self._endpoint = f"ipc://{self._folder.path / 'sock'}"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 1000)
        try:
            self._socket.bind(self._endpoint)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            self._context.term()
            self._folder.close()
            message = f"no socket in the temporary folder ({error.strerror}): set TMPDIR to another"
            raise OSError(message) from None
        self._event_loop = asyncio.get_running_loop()
        self._due = False  # a reading that no descriptor asks for is scheduled
        self._pulse = Pulse()
        self._tasks: list[asyncio.Task[None]] = []
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def start(cls, config: EngineConfig, timeout: float = START_TIMEOUT) -> RemoteEngine:
        """Start a process and wait until its model is loaded.

        Raises:
            EngineDeadError: the engine could not start; the message says why.
            TimeoutError: it did not load in ``timeout`` seconds.
            OSError: its process, or what leads to it, cannot be made.
        """
        engine = cls()
        try:
            engine._process = await engine._launch(config)
            engine._event_loop.add_reader(engine._socket, engine._read)
            engine._tasks = [asyncio.create_task(engine._watch(engine._process))]
            await asyncio.wait_for(engine._ready, timeout)
        except TimeoutError as error:
            await engine.close()
            raise TimeoutError(f"the engine did not start within {timeout:.0f} s") from error
        except BaseException:
            await engine.close()
            raise
        engine._tasks.append(asyncio.create_task(engine._watch_progress(engine._pulse.read)))
        return engine

    async def _launch(self, config: EngineConfig) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "saccade_server.engine.process",
            self._endpoint,
            msgspec.json.encode(config).decode(),
            str(os.getpid()),
            str(self._pulse.writer),
            settings_now().encode(),
            stdin=asyncio.subprocess.DEVNULL,
            env=engine_environment(config.model, os.environ),
            pass_fds=[self._pulse.writer],
        )
        self._pulse.hand_over()
        return process

    async def close(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop the process and wait until it has ended; kill it after ``timeout`` seconds.

        May be called again.
        """
        if self._process is not None and self._process.returncode is None:
            await self._end(self._process, timeout)
        self._die("the engine was closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._socket.closed:
            self._event_loop.remove_reader(self._socket)
        self._socket.close(linger=0)
        self._context.term()
        self._pulse.close()
        self._folder.close()

    async def _end(self, process: asyncio.subprocess.Process, timeout: float) -> None:
        if self._info is not None:  # an engine that is still loading hears nothing
            self._send(Shutdown())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), timeout)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _send(self, command: Command) -> None:
        # With no high-water mark a PAIR socket takes the message at once.
        self._socket.send(encode(command), flags=zmq.NOBLOCK)
        # Sending may have taken notice of what has come, and the descriptor shows that only once.
        self._read_soon()

    def _read_soon(self) -> None:
        if not self._due:
            self._due = True
            self._event_loop.call_soon(self._read_due)

    def _read_due(self) -> None:
        self._due = False
        self._read()

    def _read(self) -> None:
        """Take the replies that have come, a few at a time: clients' sockets have their turn too.

        An engine whose steps are shorter than what they cost here never lets the queue run dry.
        """
        for _ in range(READ_AT_ONCE):
            if self._socket.closed:
                return
            try:
                message = self._socket.recv(flags=zmq.NOBLOCK)
            except zmq.Again:
                return
            large = len(message) > LARGE
            try:
                self._receive(decode_reply(message))
            except Exception as error:  # or whoever waits for it would wait for ever
                logger.exception("a message of the engine could not be handed on")
                self._die(f"its message could not be handed on: {type(error).__name__}")
            if large:
                break
        self._read_soon()  # the descriptor shows only once that there is something

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        await asyncio.sleep(0.1)  # a last message may still say why
        self._die(ended(code))


def ended(code: int) -> str:
    """How a process ended, in words; ``code`` is negative for a signal."""
    if code >= 0:
        return f"the engine process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
    return f"the engine process was ended by {name}{hint}"
