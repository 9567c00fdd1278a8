"""One harness for both clients: every test that takes it runs once sync and once async."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest

from saccade_client import AsyncSaccade, Saccade

Handler = Callable[[httpx2.Request], httpx2.Response]


class Pieces(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body in given pieces; an exception among them is raised where it stands."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = pieces
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


class Harness:
    """Runs the same use of a client in one mode, on a transport that records the requests."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.waits: list[float] = []
        self.requests: list[httpx2.Request] = []

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests if request.content]

    def ask(self, handler: Handler, use: Callable[[Any], Any], **settings: Any) -> Any:
        """Return what `use(client)` returns, awaited where the client is asynchronous."""
        if self.mode == "sync":
            with Saccade(**self._settings(handler, self.waits.append, settings)) as client:
                return use(client)

        async def run() -> Any:
            async with AsyncSaccade(**self._settings(handler, self._note, settings)) as client:
                return await use(client)

        return asyncio.run(run())

    def stream(self, handler: Handler, opened: Callable[[Any], Any], **settings: Any) -> Any:
        """Read the stream `opened(client)` to its end; return its chunks and the stream."""
        if self.mode == "sync":
            return self.ask(handler, lambda client: read(opened(client)), **settings)
        return self.ask(handler, lambda client: aread(opened(client)), **settings)

    def _settings(self, handler: Handler, sleep: Any, settings: dict[str, Any]) -> dict[str, Any]:
        def recording(request: httpx2.Request) -> httpx2.Response:
            self.requests.append(request)
            return handler(request)

        transport = httpx2.MockTransport(recording)
        return {"transport": transport, "sleep": sleep, "jitter": lambda: 0.0, **settings}

    async def _note(self, seconds: float) -> None:
        self.waits.append(seconds)


def read(manager: Any) -> Any:
    with manager as stream:
        return list(stream), stream


async def aread(manager: Any) -> Any:
    async with manager as stream:
        return [chunk async for chunk in stream], stream


def answering(content: str = "yes", **fields: Any) -> dict[str, Any]:
    """Return the body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    return {"id": "c1", "model": "tiny", "choices": [choice], **fields}


def events(*payloads: Any) -> bytes:
    """Return server-sent events, one a payload; strings are sent as they are."""
    texts = [item if isinstance(item, str) else json.dumps(item) for item in payloads]
    return "".join(f"data: {text}\n\n" for text in texts).encode()


@pytest.fixture(params=["sync", "async"])
def harness(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.delenv("SACCADE_API_KEY", raising=False)
    monkeypatch.delenv("SACCADE_ADMIN_KEY", raising=False)
    return Harness(request.param)


@pytest.fixture
def answer() -> Callable[..., dict[str, Any]]:
    return answering


@pytest.fixture
def sse() -> Callable[..., bytes]:
    return events


@pytest.fixture
def pieces() -> type[Pieces]:
    return Pieces
