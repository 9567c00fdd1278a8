"""An engine in its own process, so that HTTP work never delays a step and its death is seen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.messages import Command, Shutdown, decode_reply, encode
from saccade_server.engine.streams import StreamingClient

STOP_TIMEOUT = 10.0
START_TIMEOUT = 3600.0
"""Seconds for a model to be fetched, loaded, and its kernels compiled and captured."""
"""Seconds an engine gets to end by itself."""


class RemoteEngine(StreamingClient):
    """Starts an engine process and talks to it over a socket file only this user can reach."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="saccade-"))
        self._endpoint = f"ipc://{self._folder / 'engine.sock'}"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.bind(self._endpoint)
        self._tasks: list[asyncio.Task[None]] = []
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def start(cls, config: EngineConfig, timeout: float = START_TIMEOUT) -> RemoteEngine:
        """Start a process and wait until its model is loaded.

        Raises:
            EngineDeadError: the engine could not start; the message says why.
            TimeoutError: it did not load in ``timeout`` seconds.
        """
        engine = cls()
        try:
            engine._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "saccade_server.engine.process",
                engine._endpoint,
                msgspec.json.encode(config).decode(),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
            )
            engine._tasks = [
                asyncio.create_task(engine._read()),
                asyncio.create_task(engine._watch(engine._process)),
            ]
            await asyncio.wait_for(engine._ready, timeout)
        except TimeoutError as error:
            await engine.close()
            raise TimeoutError(f"the engine did not start within {timeout:.0f} s") from error
        except BaseException:
            await engine.close()
            raise
        return engine

    async def close(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop the process and wait until it has ended; kill it after ``timeout`` seconds."""
        if self._process is not None and self._process.returncode is None:
            await self._end(self._process, timeout)
        self._die("the engine was closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close(linger=0)
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

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

    async def _read(self) -> None:
        while True:
            self._receive(decode_reply(await self._socket.recv()))

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        await asyncio.sleep(0.1)  # a last message may still say why
        self._die(f"the engine process ended with exit code {code}")
