"""Run a server: the engine process, the HTTP API, and their orderly end.

On SIGTERM, SIGINT or when its terminal closes new requests are refused, those in flight finish
within the shutdown timeout, and the process exits with 0. A second signal ends what is in flight
with an error, a third cuts it off. Any other SIGHUP has files read again
(:mod:`~saccade_server.api.reloading`). If the engine dies, or hangs and the operator wants an end
of it, the requests in flight fail and the process exits for its supervisor to see:
:mod:`~saccade_server.exit_codes`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import socket
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import FastAPI

from saccade_server.api.lifecycle import Lifecycle
from saccade_server.api.reloading import Reloadable, reload
from saccade_server.assembly import Assembly
from saccade_server.config import DEMO_NAME, ServerConfig
from saccade_server.demo import SHOWN_SAMPLE, sample_path
from saccade_server.demo.story import Story
from saccade_server.engine.client import EngineDeadError
from saccade_server.engine.remote import STOP_TIMEOUT, RemoteEngine
from saccade_server.exit_codes import ExitCode
from saccade_server.hangs import hangs
from saccade_server.listening import (
    Server,
    make_server,
    open_up,
    reached_from_outside,
    release,
    take,
)
from saccade_server.loading import load
from saccade_server.logs.context import fields
from saccade_server.logs.setup import as_json, gather, loop_failed
from saccade_server.selftest import Findings, examine
from saccade_server.signals import Signals

logger = logging.getLogger("saccade")

EXPOSED = (
    "this server is open to everyone who can reach it: it listens on an address that is not "
    "loopback and has no --api-key"
)
EVERYWHERE = ("0.0.0.0", "::")
ELSEWHERE = (
    "The image is a file where the server runs. Outside a container, take the repository's: "
    f"server/saccade_server/demo/samples/{SHOWN_SAMPLE}.png"
)

CHECK_SECONDS = 0.1
GRACE_SECONDS = 2.0
"""What requests get to send an error when nobody waits for them any more."""

Result = TypeVar("Result")


class Ended(Exception):
    """The server is to end before it serves."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


async def serve(config: ServerConfig) -> ExitCode:
    """Serve until told to stop. Returns the process's exit code.

    Raises:
        ModelLoadError: the model cannot be loaded; the message says why.
        UnsupportedModelError: its own answers are no numbers, as the self-test found.
        ProfileError: a profile is not valid, or the model cannot run it.
        ListenError: the address cannot be had.
        OSError: a folder cannot be used.
    """
    # First of all: a container's first process ignores signals that it has no handler for.
    signals = Signals()
    asyncio.get_running_loop().set_exception_handler(loop_failed)
    gather()
    sockets = take(config.host, config.port)
    try:
        return await _load_and_serve(config, sockets, signals)
    except Ended as ended:
        return ended.code
    finally:
        release(sockets)


async def _load_and_serve(
    config: ServerConfig, sockets: list[socket.socket], signals: Signals
) -> ExitCode:
    assembly = Assembly.begin(config)
    engine, prompts = await _unless(signals.stop.wait(), load(config.engine))
    hung = asyncio.create_task(hangs(engine, config.api, report_only=not config.exit_on_hang))
    try:
        found = Findings({}, {})
        if config.self_test:
            testing = examine(engine, prompts, assembly.registry, config.self_test_limit)
            found = await _unless(signals.stop.wait(), _unless_hung(hung, testing))
        app = assembly.app(engine, prompts, found)
        try:
            return await _Run(config, app, engine, hung, signals).until_ended(sockets)
        finally:
            app.state.services.close()
    finally:
        hung.cancel()
        hears = engine.lag.overdue(config.api.silence_timeout, config.api.step_timeout) < 1
        await engine.close(STOP_TIMEOUT if hears and not signals.at_once else 0.0)


async def _unless(stop: Coroutine[Any, Any, object], work: Coroutine[Any, Any, Result]) -> Result:
    """Do ``work``.

    Raises:
        Ended: ``stop`` was done first; the work was cancelled.
    """
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop)
    await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        raise Ended(ExitCode.STOPPED)
    return working.result()


async def _unless_hung(hung: asyncio.Task[bool], work: Coroutine[Any, Any, Result]) -> Result:
    """Do ``work`` on an engine that nobody is served by yet.

    Raises:
        Ended: the engine died of it or hung.
    """
    working = asyncio.create_task(work)
    try:
        await asyncio.wait([working, hung], return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and hung.result():
            raise Ended(ExitCode.HUNG)
        return await working
    except EngineDeadError as error:
        logger.error("the engine died in the self-test: %s", error)
        raise Ended(ExitCode.FAILED) from None
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


class _Run:
    """A server from its first request to its last."""

    def __init__(
        self,
        config: ServerConfig,
        app: FastAPI,
        engine: RemoteEngine,
        hung: asyncio.Task[bool],
        signals: Signals,
    ) -> None:
        self._config = config
        self._engine = engine
        self._hung = hung
        self._signals = signals
        self._lifecycle: Lifecycle = app.state.lifecycle
        self._server: Server = make_server(app, config.api)
        self._reloadables: list[Reloadable] = app.state.reloadables
        self._heeded = 0  # signals that stop
        self._reloaded = 0  # and those that do not
        self._reloading: asyncio.Task[bool] | None = None
        self._ending: asyncio.Task[None] | None = None

    async def until_ended(self, sockets: list[socket.socket]) -> ExitCode:
        """Listen on ``sockets`` until a signal, or the engine, ends it."""
        open_up(sockets)
        exposed = not self._config.api.needs_key and reached_from_outside(sockets)
        if exposed:
            logger.warning(EXPOSED)
        listening = asyncio.create_task(self._server.serve(sockets))
        greeted = False
        while not listening.done() and self._engine.alive:
            await asyncio.wait([listening], timeout=CHECK_SECONDS)
            if self._server.started and not greeted:
                greeted = True
                self._greet(exposed)
            self._heed()
            self._reload()
            if self._is_hung():
                logger.error("the engine is killed, because it hangs")
                await self._engine.close(0.0)
        if not self._engine.alive:
            logger.error("the engine has died")
            await self._end(0.0)
        await listening
        if self._reloading is not None:
            self._reloading.cancel()
        if self._ending is not None:
            self._ending.cancel()
        if self._is_hung():
            return ExitCode.HUNG
        served = self._engine.alive and self._server.started
        return ExitCode.STOPPED if served else ExitCode.FAILED

    def _greet(self, exposed: bool) -> None:
        if not as_json():
            _say(greeting(self._config, exposed))
            return
        said = {"model": self._config.api.served_model_name, "url": address(self._config)}
        logger.info("serving", extra=fields(**said))

    def _is_hung(self) -> bool:
        return self._hung.done() and self._hung.result()

    def _heed(self) -> None:
        """Act on signals that have come."""
        count = self._signals.count
        if count == self._heeded:
            return
        self._heeded = count
        timeout = self._config.api.shutdown_timeout if count == 1 else 0.0
        if self._ending is not None:
            self._ending.cancel()
        if count > 2:
            self._server.should_exit = self._server.force_exit = True
            return
        logger.info("draining, at most %.0f s", timeout)
        self._ending = asyncio.create_task(self._end(timeout))

    def _reload(self) -> None:
        """Read files again if it was asked for, one round at a time."""
        asked, running = self._signals.reloads, self._reloading
        if asked != self._reloaded and (running is None or running.done()):
            self._reloaded = asked
            self._reloading = asyncio.create_task(reload(self._reloadables))

    async def _end(self, timeout: float) -> None:
        await self._lifecycle.shutdown(timeout, GRACE_SECONDS)
        self._server.should_exit = True


def _say(text: str) -> None:
    """Print for whoever reads along; a server outlives its reader."""
    try:
        print(text, flush=True)
    except OSError:
        # What is left in the buffer would fail again when Python ends, and change the exit code.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def address(config: ServerConfig) -> str:
    """Where a browser on this machine finds the server."""
    host = "127.0.0.1" if config.host in EVERYWHERE else config.host
    return f"http://{f'[{host}]' if ':' in host else host}:{config.port}"


def greeting(config: ServerConfig, exposed: bool = False) -> str:
    """What an operator sees when the server is up: its pages, and a request to paste.

    Args:
        exposed: the server has no keys and others than this machine reach it.
    """
    url = address(config)
    name = config.api.served_model_name
    lines = [
        f"Serving {name} at {url} (OpenAI-compatible: {url}/v1)",
        f"Playground: {url}/   API in a browser: {url}/docs",
    ]
    if exposed:
        lines.append(f"WARNING: {EXPOSED}")
    if name == DEMO_NAME:
        story = Story.of(SHOWN_SAMPLE)
        lines += [
            "Try it. Without the intervention the model says:",
            f"{story.plain_answer} ({story.judge(story.plain_answer)})",
            *([ELSEWHERE] if config.host in EVERYWHERE else []),
            "",
            example_request(url, name, story.question, config.api.needs_key),
            "",
        ]
    return "\n".join(lines)


def example_request(url: str, model: str, question: str, with_key: bool) -> str:
    """A shell command that asks the demo model about a sample image, with VCD."""
    image = shlex.quote(str(sample_path(SHOWN_SAMPLE)))
    # Without options: GNU's base64 breaks lines unless told otherwise, other systems' has no -w.
    encoded = f"$(base64 < {image} | tr -d '\\n')"
    body = (
        f'{{"model": "{model}", "temperature": 0, "interventions": [{{"method": "vcd"}}], '
        '"messages": [{"role": "user", "content": ['
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,\'"'
        f'{encoded}"\'"}}}}, {{"type": "text", "text": "{question}"}}]}}]}}'
    )
    key = ' -H "Authorization: Bearer $SACCADE_API_KEY"' if with_key else ""
    target = f"{url}/v1/chat/completions{key} -H 'Content-Type: application/json'"
    return f"curl -s {target} -d '{body}'"
