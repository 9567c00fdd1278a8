"""A server on a real socket over a scripted engine and a byte-level prompt processor."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx2
import openai
import uvicorn

from saccade_interventions.registry import Registry
from saccade_server.api.app import create_app
from saccade_server.api.layers.connections import HttpConfig
from saccade_server.api.layers.listener import Listener
from saccade_server.api.layers.record import Observer
from saccade_server.api.services import Services
from saccade_server.api.settings import ApiSettings
from saccade_server.requests.profiles import read_profiles
from saccade_testing.api.bodies import MODEL, chat_body, parse_events
from saccade_testing.api.documented import Documented
from saccade_testing.api.fakes import BytePrompts, FakeEngine

MakeServer = Callable[..., "Server"]
"""``make(engine, **settings)``, as :func:`start_server`; it is stopped when the test ends."""


class Server:
    """An application on a loopback port in a thread, with clients for it."""

    def __init__(self, engine: Any, settings: ApiSettings, **offers: Any) -> None:
        self.engine = engine
        self.prompts = BytePrompts()
        self.settings = settings
        prompts: Any = self.prompts
        self.app = create_app(engine, prompts, REGISTRY, settings, **offers)
        self.documented = Documented(self.app)
        # asyncio sets TCP_NODELAY only on sockets whose protocol is named; without it every
        # answer on a kept connection waits 40 ms for an acknowledgement.
        listener = Listener(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.uvicorn = uvicorn.Server(
            HttpConfig(self.documented, settings, self.app.state.services.tally.refused)
        )
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self.http = httpx2.Client(base_url=self.url, timeout=10, trust_env=False)
        SERVERS.append(self)

    def _run(self, listener: socket.socket) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            await self.uvicorn.serve(sockets=[listener])

        with contextlib.closing(listener):
            asyncio.run(main())

    def start(self) -> None:
        self.thread.start()
        wait_for(lambda: self.uvicorn.started)

    def stop(self) -> None:
        self.http.close()
        self.uvicorn.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()

    def renew(self) -> None:
        """Make the engine as new."""
        for name, value in vars(FakeEngine()).items():
            setattr(self.engine, name, value)

    def openai(self, **options: Any) -> openai.OpenAI:
        given: dict[str, Any] = {"api_key": "none", "max_retries": 0} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", **given)

    def chat(self, **fields: object) -> httpx2.Response:
        return self.http.post("/v1/chat/completions", json=chat_body(**fields))

    def events(self, **fields: object) -> list[object]:
        """The data of every event of a streamed chat; the last is "[DONE]"."""
        response = self.chat(stream=True, **fields)
        assert response.status_code == 200, response.text
        return parse_events(response.text)


def start_server(
    engine: Any = None,
    *,
    profiles: Mapping[str, Any] | None = None,
    faults: Mapping[str, str] | None = None,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Server:
    """Start a server; whoever calls this stops it."""
    options: dict[str, Any] = {"served_model_name": MODEL, "max_body_bytes": 1024 * 1024} | settings
    offers = {
        "profiles": read_profiles({"profiles": dict(profiles or {})}, REGISTRY),
        "faults": faults,
        "observers": observers,
    }
    server = Server(engine or FakeEngine(), ApiSettings(**options), **offers)
    server.start()
    return server


def check_servers() -> None:
    """No server lost an intervention, or answered what its document does not say."""
    problems = []
    for server in SERVERS:
        services: Services = server.app.state.services
        assert not services.noops, "an intervention acted on nothing"
        problems += server.documented.problems
        server.documented.problems.clear()
    SERVERS[:] = [server for server in SERVERS if server.thread.is_alive()]
    assert not problems, "\n".join(problems[:5])


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


REGISTRY = Registry.discover()
SERVERS: list[Server] = []
"""Those that ran since :func:`check_servers`, and those that run."""
