"""An application whose engine makes the steps that a test says, and what it writes to clients."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from saccade_server.api.app import create_app
from saccade_server.api.layers.connections import HttpConfig
from saccade_server.api.settings import ApiSettings
from saccade_server.engine.messages import Abort, Outputs, Submit
from saccade_server.engine.request import EngineOutput, FinishReason
from saccade_server.engine.streams import StreamingClient
from saccade_testing.api.bodies import MODEL
from saccade_testing.api.fakes import INFO, BytePrompts
from saccade_testing.api.server import REGISTRY

HEAD = b"POST %b HTTP/1.%d\r\nhost: localhost\r\ncontent-type: application/json\r\n"


class Stepped(StreamingClient):
    """An engine whose steps a test makes."""

    def __init__(self, info: Any) -> None:
        super().__init__()
        self._info = info
        self.submitted: list[Submit] = []
        self.aborted: list[str] = []

    def _send(self, command: Any) -> None:
        if isinstance(command, Submit):
            self.submitted.append(command)
        elif isinstance(command, Abort):
            self.aborted.append(command.request_id)

    def step(self, token: str) -> None:
        numbers = [each.number for each in self.submitted]
        self._receive(Outputs(numbers, [ord(token)] * len(numbers)))

    def end(self) -> None:
        names = [each.request.request_id for each in self.submitted]
        reason = FinishReason.LENGTH
        self._receive(Outputs(outputs=[output(n, "!", finish_reason=reason) for n in names]))

    async def close(self) -> None: ...


def output(name: str, token: str, **more: Any) -> EngineOutput:
    return EngineOutput(request_id=name, tokens=(ord(token),), **more)


class Wire(asyncio.Transport):
    """Keeps what is written, each write apart."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if data:  # asyncio's own transports do nothing else with nothing
            self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class Stand:
    """An application, an engine that a test steps, and any number of connections."""

    def __init__(self) -> None:
        self.engine = Stepped(INFO)
        settings = ApiSettings(served_model_name=MODEL)
        prompts: Any = BytePrompts()
        app = create_app(self.engine, prompts, REGISTRY, settings)
        self.services = app.state.services
        self._config = HttpConfig(app, settings)
        self._config.load()

    async def ask(
        self, path: str = "/v1/chat/completions", http: int = 1, on: Any = None, **fields: Any
    ) -> Any:
        """A connection, a new one or ``on``, whose request the engine has."""
        asked = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {}
        body = json.dumps({"model": MODEL, "stream": True, **asked, **fields}).encode()
        connection = on or self._connected()
        before = len(self.engine.submitted)
        head = HEAD % (path.encode(), http)
        connection.data_received(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        while len(self.engine.submitted) < before + fields.get("n", 1):
            await asyncio.sleep(0.001)
        return connection

    def _connected(self) -> Any:
        state = uvicorn.server.ServerState()
        protocol: Any = self._config.http_protocol_class
        made = protocol(config=self._config, server_state=state, app_state={})
        made.connection_made(Wire())
        return made


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(test: Callable[[Stand], Awaitable[None]]) -> None:
    async def main() -> None:
        stand = Stand()
        try:
            await test(stand)
        finally:
            stand.services.close()
            await settled()

    asyncio.run(main())


def body(connection: Any) -> bytes:
    """What came so far, of chunks that are whole."""
    data = b"".join(connection.transport.apart.writes).partition(b"\r\n\r\n")[2]
    text = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        assert data[length : length + 2] == b"\r\n"
        text, data = text + data[:length], data[length + 2 :]
    return text


def events(connection: Any) -> list[Any]:
    """The data of the events so far."""
    found = [piece.removeprefix(b"data: ") for piece in body(connection).split(b"\n\n") if piece]
    return [piece if piece == b"[DONE]" else json.loads(piece) for piece in found]


def texts(connection: Any) -> str:
    found = [event["choices"][0] for event in events(connection) if event != b"[DONE]"]
    return "".join(choice["delta"].get("content", "") for choice in found)
