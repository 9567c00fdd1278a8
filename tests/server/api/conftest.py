"""A server on a real socket over a scripted engine and a byte-level prompt processor."""

import asyncio
import base64
import codecs
import contextlib
import hashlib
import io
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import httpx2
import numpy as np
import openai
import pytest
import uvicorn
from PIL import Image

from saccade_interventions.edits import MassEdit
from saccade_interventions.phases import Phase
from saccade_interventions.registry import Registry
from saccade_server.api.app import create_app
from saccade_server.api.settings import ApiSettings
from saccade_server.engine.client import CapacityError, EngineDeadError
from saccade_server.engine.request import (
    EngineInfo,
    EngineOutput,
    EngineStats,
    FinishReason,
    GenerateRequest,
    Receipt,
    SiteCount,
    TokenLogprobs,
)
from saccade_server.models.prompt import Message, PreparedImage, RenderedPrompt

EOS = 256
IMAGE = 257
IMAGE_LENGTH = 4
MODEL = "saccade-test"
INFO = EngineInfo(
    model="test/model",
    family="test",
    device="cpu",
    dtype="float32",
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=8,
    hidden_size=32,
    vocab_size=258,
    eos_token_ids=(EOS,),
    max_model_len=512,
    max_num_seqs=8,
    cache_tokens=4096,
    max_waiting=64,
    max_programs=8,
    sink_dims=(3,),
    accepts_images=True,
)


class ByteDecoder:
    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self.decoder.decode(bytes([token])) if token < 256 else ""

    def flush(self) -> str:
        return self.decoder.decode(b"", True)


class BytePrompts:
    """One token a byte; an image is four tokens."""

    accepts_images = True
    vocab_size = INFO.vocab_size
    max_token_chars = 1

    def chat(self, messages: list[Message]) -> RenderedPrompt:
        text = ""
        tokens: list[int] = []
        offsets: list[tuple[int, int]] = []
        images: list[PreparedImage] = []

        def add(piece: str) -> None:
            nonlocal text
            for char in piece:
                data = char.encode()
                tokens.extend(data)
                offsets.extend([(len(text), len(text) + 1)] * len(data))
                text += char

        for message in messages:
            add(f"<{message.role.replace('developer', 'system')}>")
            for part in message.parts:
                if isinstance(part, str):
                    add(part)
                else:
                    images.append(self.prepare(part, len(tokens)))
                    tokens.extend([IMAGE] * IMAGE_LENGTH)
                    offsets.extend([(len(text), len(text))] * IMAGE_LENGTH)
        add("<assistant>")
        return RenderedPrompt(tuple(tokens), text, tuple(offsets), tuple(images))

    def prepare(self, image: Image.Image, start: int) -> PreparedImage:
        assert image.mode == "RGB"
        pixels = np.asarray(image.resize((4, 4)), np.float32).transpose(2, 0, 1)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        return PreparedImage(digest, start, IMAGE_LENGTH, pixels, None)

    def completion(self, prompt: str | list[int]) -> RenderedPrompt:
        tokens = tuple(prompt.encode()) if isinstance(prompt, str) else tuple(prompt)
        text = prompt if isinstance(prompt, str) else ""
        return RenderedPrompt(tokens, text, tuple((i, i + 1) for i in range(len(tokens))), ())

    def detokenizer(self, tokens: tuple[int, ...]) -> ByteDecoder:
        return ByteDecoder()

    def token_text(self, token: int) -> tuple[str, bytes]:
        data = bytes([token]) if token < 256 else b""
        return data.decode("utf-8", "replace"), data


@dataclass
class FakeEngine:
    """Says ``answer`` a byte at a time, then EOS; obeys max_tokens; counts what a plan touches."""

    info: EngineInfo = INFO
    answer: str = "Hello, world!"
    delay: float = 0.0
    stall_after: int | None = None
    fail_after: int | None = None
    capacity: bool = True
    alive: bool = True
    moves: bool = True
    cached_tokens: int = 0
    requests: list[GenerateRequest] = field(default_factory=list)
    aborted: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)

    async def submit(self, request: GenerateRequest) -> AsyncIterator[EngineOutput]:
        if not self.alive:
            raise EngineDeadError("gone")
        if not self.capacity:
            raise CapacityError("full")
        self.requests.append(request)
        self.running.add(request.request_id)
        try:
            async for output in self._outputs(request):
                yield output
        finally:
            self.running.discard(request.request_id)

    async def _outputs(self, request: GenerateRequest) -> AsyncIterator[EngineOutput]:
        tokens = [*self.answer.encode(), EOS]
        name = request.request_id
        for count, token in enumerate(tokens, 1):
            await asyncio.sleep(self.delay)
            while self.stall_after is not None and count > self.stall_after:
                await asyncio.sleep(0.01)
                if name in self.aborted:
                    break
            if not self.alive:
                raise EngineDeadError("gone")
            if name in self.aborted:
                yield self._last(request, count, FinishReason.ABORT)
                return
            if self.fail_after is not None and count > self.fail_after:
                reason = FinishReason.ERROR
                yield EngineOutput(request_id=name, finish_reason=reason, error="/secret 0xdead")
                return
            entry = self._logprobs(request, token)
            if token == EOS:
                yield self._last(request, count, FinishReason.STOP, (token,), entry)
            elif count == request.sampling.max_tokens:
                yield self._last(request, count, FinishReason.LENGTH, (token,), entry)
                return
            else:
                yield EngineOutput(request_id=name, tokens=(token,), logprobs=entry)

    def _logprobs(self, request: GenerateRequest, token: int) -> tuple[TokenLogprobs, ...]:
        wanted = request.sampling.logprobs
        if wanted is None:
            return ()
        top = tuple((i + 65, -1.0 - i) for i in range(wanted))
        return (TokenLogprobs(token, -0.5 if token != ord("!") else float("-inf"), top),)

    def _last(
        self,
        request: GenerateRequest,
        generated: int,
        reason: FinishReason,
        tokens: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> EngineOutput:
        return EngineOutput(
            request_id=request.request_id,
            tokens=tokens,
            logprobs=logprobs,
            finish_reason=reason,
            cached_tokens=self.cached_tokens,
            receipt=self._receipt(request, generated),
        )

    def _receipt(self, request: GenerateRequest, generated: int) -> Receipt | None:
        plan = request.plan
        if plan is None:
            return None
        rows: dict[str, int] = {}
        for position in range(len(request.tokens) + generated - 1):
            phase = plan.phase(position)
            rows[phase] = rows.get(phase, 0) + 1
        moved = [
            SiteCount(layer, head, rows.get(Phase.GENERATED, 0))
            for edit in plan.edits
            if isinstance(edit, MassEdit)
            for layer, heads in edit.sites
            for head in heads
        ]
        return Receipt(rows, tuple(moved) if self.moves else ())

    async def abort(self, request_id: str) -> None:
        self.aborted.add(request_id)

    async def stats(self) -> EngineStats:
        return EngineStats(running=len(self.running))

    async def close(self) -> None:
        self.alive = False


class Server:
    """An application on a loopback port in a thread, with clients for it."""

    def __init__(self, engine: FakeEngine, prompts: BytePrompts, settings: ApiSettings) -> None:
        self.engine = engine
        self.prompts = prompts
        self.settings = settings
        self.app = create_app(engine, prompts, REGISTRY, settings)
        # asyncio sets TCP_NODELAY only on sockets whose protocol is named; without it every
        # answer on a kept connection waits 40 ms for an acknowledgement.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.app, log_config=None, lifespan="on", ws="none", timeout_graceful_shutdown=2
        )
        self.uvicorn = uvicorn.Server(config)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self.http = httpx2.Client(base_url=self.url, timeout=10, trust_env=False)

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

    def openai(self, **options: object) -> openai.OpenAI:
        options = {"api_key": "none", "max_retries": 0} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def chat(self, **fields: object) -> httpx2.Response:
        return self.http.post("/v1/chat/completions", json=chat_body(**fields))

    def events(self, **fields: object) -> list[object]:
        """The data of every event of a streamed chat; the last is "[DONE]"."""
        response = self.chat(stream=True, **fields)
        assert response.status_code == 200, response.text
        return parse_events(response.text)


def parse_events(text: str) -> list[object]:
    blocks = [block for block in text.split("\n\n") if block.startswith("data: ")]
    return [
        block[6:] if block == "data: [DONE]" else json.loads(block.removeprefix("data: "))
        for block in blocks
    ]


def chat_body(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]} | fields


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def image_messages(*urls: str, text: str = "What is this?") -> list[dict[str, object]]:
    parts = [image_part(url) for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


REGISTRY = Registry.discover()
PICTURE = data_url(encode(Image.new("RGB", (8, 6), "red")))


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """What test modules need from here; they cannot import a conftest."""
    return SimpleNamespace(
        model=MODEL,
        picture=PICTURE,
        registry=REGISTRY,
        engine=FakeEngine,
        info=INFO,
        chat_body=chat_body,
        parse_events=parse_events,
        wait_for=wait_for,
        encode=encode,
        data_url=data_url,
        image_messages=image_messages,
        image_part=image_part,
    )


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    """Start a server whose settings or engine differ."""
    servers = []

    def make(engine: FakeEngine | None = None, **settings: object) -> Server:
        options = {"served_model_name": MODEL, "max_body_bytes": 1024 * 1024} | settings
        server = Server(engine or FakeEngine(), BytePrompts(), ApiSettings(**options))
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    settings = ApiSettings(
        served_model_name=MODEL, max_body_bytes=1024 * 1024, max_image_pixels=1_000_000
    )
    server = Server(FakeEngine(), BytePrompts(), settings)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: Server) -> Server:
    """One server for all tests, its engine as new."""
    engine = shared_server.engine
    fresh = FakeEngine()
    for name in vars(fresh):
        setattr(engine, name, getattr(fresh, name))
    return shared_server
