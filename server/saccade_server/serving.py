"""Run a server: the engine process, the HTTP API, and their orderly end.

On SIGTERM or SIGINT new requests are refused, those in flight finish within the shutdown timeout,
and the process exits with 0; a second signal ends it at once. If the engine dies the requests in
flight fail, and the process exits with 1 for its supervisor to see.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
import socket
from typing import Any

from saccade_interventions.registry import Registry
from saccade_server.api.app import create_app
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.api.profiles import load_profiles
from saccade_server.config import DEMO_NAME, ServerConfig
from saccade_server.demo import sample_path
from saccade_server.engine.client import EngineClient
from saccade_server.engine.remote import STOP_TIMEOUT, RemoteEngine
from saccade_server.listening import (
    Server,
    make_server,
    reached_from_outside,
    release,
    reopenable,
    take,
)
from saccade_server.models.prompt import PromptProcessor
from saccade_server.selftest import find_faults

logger = logging.getLogger("saccade")

EXPOSED = (
    "this server is open to everyone who can reach it: it listens on an address that is not "
    "loopback and has no --api-key"
)

CHECK_SECONDS = 0.1
FAILURE_GRACE_SECONDS = 2.0


class _Signals:
    """SIGTERM and SIGINT from now on: the first asks to stop, the second to stop at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.at_once = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._note)

    def _note(self) -> None:
        (self.at_once if self.stop.is_set() else self.stop).set()


async def serve(config: ServerConfig) -> int:
    """Serve until told to stop. Returns the process's exit code.

    Raises:
        EngineDeadError: the engine did not start; the message says why.
        TimeoutError: its model did not load in time.
        UnsupportedModelError: the model has no usable tokenizer or processor.
        ProfileError: a profile is not valid, or the model cannot run it.
        ListenError: the address cannot be had.
    """
    # First of all: a container's first process ignores signals that it has no handler for.
    signals = _Signals()
    sockets = take(config.host, config.port)
    try:
        return await _load_and_serve(config, sockets, signals)
    finally:
        release(sockets)


async def _load_and_serve(
    config: ServerConfig, sockets: list[socket.socket], signals: _Signals
) -> int:
    registry = Registry.discover()
    profiles = load_profiles(config.profiles, registry) if config.profiles else {}
    prompts = asyncio.create_task(asyncio.to_thread(PromptProcessor.load, config.engine.model))
    starting = asyncio.create_task(RemoteEngine.start(config.engine))
    if not await _before(starting, signals.stop):
        starting.cancel()
        await asyncio.gather(starting, prompts, return_exceptions=True)
        return 0
    engine = await starting
    try:
        faults: dict[str, str] = {}
        if config.self_test:
            testing = asyncio.create_task(find_faults(engine, await prompts, registry))
            if not await _before(testing, signals.stop):
                testing.cancel()
                await asyncio.gather(testing, return_exceptions=True)
                return 0
            faults = await testing
        app = create_app(
            engine, await prompts, registry, config.api, profiles=profiles, faults=faults
        )
        server = make_server(app, config.api)
        return await _run(server, sockets, engine, app.state.lifecycle, signals, config)
    finally:
        await engine.close(0.0 if signals.at_once.is_set() else STOP_TIMEOUT)


async def _before(work: asyncio.Task[Any], event: asyncio.Event) -> bool:
    """Wait for either; True if the work was done first."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([work, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return work.done()


async def _run(
    server: Server,
    sockets: list[socket.socket],
    engine: EngineClient,
    lifecycle: Lifecycle,
    signals: _Signals,
    config: ServerConfig,
) -> int:
    reopenable(sockets)
    exposed = not config.api.api_keys and reached_from_outside(sockets)
    if exposed:
        logger.warning(EXPOSED)
    listening = asyncio.create_task(server.serve(sockets))
    draining: asyncio.Task[None] | None = None
    greeted = False
    while not listening.done() and engine.alive:
        await asyncio.wait([listening], timeout=CHECK_SECONDS)
        if server.started and not greeted:
            greeted = True
            print(greeting(config, exposed), flush=True)
        if signals.stop.is_set() and draining is None:
            logger.info("draining, at most %.0f s", config.api.shutdown_timeout)
            draining = asyncio.create_task(_drain(server, lifecycle, config.api.shutdown_timeout))
        if signals.at_once.is_set():
            server.should_exit = server.force_exit = True
    if not engine.alive:
        logger.error("the engine has died")
        await lifecycle.shutdown(0.0, FAILURE_GRACE_SECONDS)
        server.should_exit = True
    await listening
    if draining is not None:
        draining.cancel()
    return 0 if engine.alive and server.started else 1


async def _drain(server: Server, lifecycle: Lifecycle, timeout: float) -> None:
    await lifecycle.shutdown(timeout)
    server.should_exit = True


def greeting(config: ServerConfig, exposed: bool = False) -> str:
    """What an operator sees when the server is up: a request to paste.

    Args:
        exposed: the server has no keys and others than this machine reach it.
    """
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    host = f"[{host}]" if ":" in host else host
    url = f"http://{host}:{config.port}"
    name = config.api.served_model_name
    lines = [f"Serving {name} at {url} (OpenAI-compatible: {url}/v1)"]
    if exposed:
        lines.append(f"WARNING: {EXPOSED}")
    if name == DEMO_NAME:
        lines += ["Try it:", "", example_request(url, name, bool(config.api.api_keys)), ""]
    return "\n".join(lines)


def example_request(url: str, model: str, with_key: bool) -> str:
    """A shell command that asks the demo model about a sample image, with VAR."""
    image = shlex.quote(str(sample_path("absent-1")))
    body = (
        f'{{"model": "{model}", "temperature": 0, "interventions": [{{"method": "var"}}], '
        '"messages": [{"role": "user", "content": ['
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,\'"$(base64 -w0 '
        f'{image})"\'"}}}}, {{"type": "text", "text": "Describe the image."}}]}}]}}'
    )
    key = ' -H "Authorization: Bearer $SACCADE_API_KEY"' if with_key else ""
    target = f"{url}/v1/chat/completions{key} -H 'Content-Type: application/json'"
    return f"curl -s {target} -d '{body}'"
