"""Over a real socket: pieces arrive when they are sent, and connections end as they should."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import saccade_client as sdk

PIECE = b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Server(ThreadingHTTPServer):
    """Streams one piece, waits to be told, then does what the prompt says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.go_on = threading.Event()
        self.hung_up = threading.Event()
        self.ports: list[int] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"]))
        self.server.ports.append(self.client_address[1])
        try:
            self.answer(asked)
        except OSError:
            self.server.hung_up.set()
            self.close_connection = True

    def answer(self, asked: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.piece(PIECE % b"one ")
        self.server.go_on.wait(5)
        if b"break" in asked:
            self.close_connection = True
            return
        while b"endless" in asked:
            self.piece(PIECE % (b"more " * 1000))
        self.piece(PIECE % b"two")
        self.piece(DONE)
        self.wfile.write(b"0\r\n\r\n")

    def piece(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.flush()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


def test_pieces_arrive_while_the_server_still_writes(server):
    with sdk.Saccade(server.address) as client, client.stream_chat("x", model="m") as stream:
        chunks = iter(stream)
        assert next(chunks).text == "one "
        server.go_on.set()
        assert [chunk.text for chunk in chunks] == ["two"]
        assert stream.final.text == "one two"


def test_a_stream_read_to_its_end_leaves_the_connection_for_the_next(server):
    server.go_on.set()
    with sdk.Saccade(server.address) as client:
        for _ in range(3):
            with client.stream_chat("x", model="m") as stream:
                assert len(list(stream)) == 2
    assert len(set(server.ports)) == 1


def test_leaving_the_block_hangs_up(server):
    server.go_on.set()
    with sdk.Saccade(server.address) as client:
        with client.stream_chat("endless", model="m") as stream:
            next(iter(stream))
        assert server.hung_up.wait(5)


def read_all(client: sdk.Saccade, prompt: str) -> None:
    with client.stream_chat(prompt, model="m") as stream:
        list(stream)


def test_a_connection_lost_in_the_middle(server):
    server.go_on.set()
    with sdk.Saccade(server.address) as client, pytest.raises(sdk.StreamInterrupted) as caught:
        read_all(client, "break")
    assert caught.value.text == "one "
    assert len(server.ports) == 1


def test_silence_in_the_middle(server):
    with sdk.Saccade(server.address, timeout=0.1) as client, pytest.raises(sdk.Timeout):
        read_all(client, "x")


def test_nobody_listens():
    with Server() as closed:
        address = closed.address
    waits: list[float] = []
    with sdk.Saccade(address, sleep=waits.append) as client:
        assert client.ready() is False
        with pytest.raises(sdk.ConnectionFailed, match=r"POST http://127\.0\.0\.1"):
            client.chat("x", model="m")
    assert len(waits) == 2


def test_many_streams_at_once_and_one_cancelled(server):
    async def collect(client: sdk.AsyncSaccade) -> str:
        async with client.stream_chat("x", model="m") as stream:
            async for _ in stream:
                server.go_on.set()
        return stream.final.text

    async def hang(client: sdk.AsyncSaccade) -> None:
        async with client.stream_chat("endless", model="m") as stream:
            async for _ in stream:
                pass

    async def run() -> list[str]:
        async with sdk.AsyncSaccade(server.address) as client:
            endless = asyncio.create_task(hang(client))
            texts = await asyncio.gather(*[collect(client) for _ in range(5)])
            endless.cancel()
            with pytest.raises(asyncio.CancelledError):
                await endless
            assert await asyncio.to_thread(server.hung_up.wait, 5)
            return texts

    assert asyncio.run(run()) == ["one two"] * 5
