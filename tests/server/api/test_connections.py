"""What a client may do to a connection without keeping it: late, odd, slow, too many, too large."""

import asyncio
import hashlib
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from saccade_server.api.layers.connections import Connection
from saccade_testing.api.bodies import chat_body
from saccade_testing.api.server import MakeServer, start_server, wait_for

LATE = 0.3
PATIENCE = 20.0  # seconds for what takes LATE where nothing else runs


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


def everything(raw):
    """All that comes until the server closes, a reset included."""
    pieces = []
    try:
        while piece := raw.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def error_of(reply):
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def post(body, *headers, version="1.1"):
    lines = [
        f"POST /v1/chat/completions HTTP/{version}",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
def chat():
    return json.dumps(chat_body()).encode()


@pytest.fixture(scope="module")
def hasty():
    """A server that waits for nothing long."""
    server = start_server(header_timeout=LATE, keep_alive_timeout=1)
    yield server
    server.stop()


def connections(server):
    return len(server.uvicorn.server_state.connections)


def test_a_connection_that_says_nothing_is_closed(hasty):
    with connect(hasty) as raw:
        assert everything(raw) == b""


def test_headers_by_single_bytes_do_not_keep_a_connection(hasty):
    began = time.monotonic()
    with connect(hasty) as raw:
        raw.settimeout(LATE / 4)
        reply = b""
        for byte in b"GET /live HTTP/1.1\r\nhost: localhost\r\nx-slow: " + b"z" * 400:
            try:
                raw.sendall(bytes([byte]))
                reply = raw.recv(65536)
            except TimeoutError:
                continue
            break
        raw.settimeout(PATIENCE)
        status, code = error_of(reply + everything(raw))
    assert (status, code) == (408, "request_timeout")
    assert time.monotonic() - began < PATIENCE


def test_the_next_request_has_the_same_time(hasty):
    """Not the time of an idle connection, which a single byte would stop."""
    with connect(hasty) as raw:
        raw.sendall(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\nG")
        first, _, rest = everything(raw).partition(b"\r\n\r\n")
    assert b" 200 " in first.split(b"\r\n")[0]
    assert error_of(rest) == (408, "request_timeout")


def test_an_idle_connection_is_closed(hasty):
    with connect(hasty) as raw:
        raw.sendall(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        began = time.monotonic()
        assert everything(raw).count(b"HTTP/1.1") == 1
        assert time.monotonic() - began > 0.9


def test_the_rest_of_a_refused_body_does_not_keep_a_connection(
    hasty, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("saccade_server.api.layers.read_out.DISCARD_SECONDS", 0.05)
    with connect(hasty) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n"
            b"content-length: 1000000\r\n\r\n"
        )
        raw.settimeout(LATE / 4)
        end = time.monotonic() + PATIENCE
        closed = False
        while not closed and time.monotonic() < end:
            try:
                raw.sendall(b"x")
                closed = not raw.recv(65536) and time.monotonic() < end
            except TimeoutError:
                continue
            except OSError:
                closed = True
    assert closed


def test_no_more_of_a_refused_body_is_read_than_some(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("saccade_server.api.layers.read_out.DISCARD_SECONDS", 10 * PATIENCE)
    server = make_server(max_body_bytes=1000)
    with connect(server) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n"
            b"content-length: 1000000\r\n\r\n" + b"x" * 5000
        )
        assert raw.recv(65536).startswith(b"HTTP/1.1 413")


def test_an_answer_that_takes_longer_than_headers_may(hasty, chat):
    """The time for headers is not the time for an answer."""
    hasty.engine.delay = 0.05  # between two of thirteen tokens
    with connect(hasty) as raw:
        raw.sendall(post(chat, "connection: close"))
        assert b"Hello, world!" in everything(raw)
    hasty.renew()


def test_an_answer_that_nobody_reads_is_given_up(make_server: MakeServer, tmp_path: Path):
    data = bytes(16 * 1024 * 1024)  # more than the system's buffers hold between the two
    name = hashlib.sha256(data).hexdigest()
    (tmp_path / f"{name}.safetensors").write_bytes(data)
    server = make_server(send_timeout=0.5, artifacts=tmp_path)
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", server.port))
        raw.sendall(b"GET /v1/artifacts/%s HTTP/1.1\r\nhost: [::1]\r\n\r\n" % name.encode())
        assert raw.recv(15) == b"HTTP/1.1 200 OK"
        wait_for(lambda: not connections(server), PATIENCE)
        wait_for(lambda: not server.app.state.lifecycle.in_flight)


@pytest.mark.parametrize("stream", [False, True])
def test_who_closes_its_half_has_left(make_server: MakeServer, stream):
    """Nobody can tell it from one that closed all of it, and an answer costs."""
    server = make_server()
    server.engine.stall_after = 2
    with connect(server) as raw:
        raw.sendall(post(json.dumps(chat_body(stream=stream)).encode()))
        wait_for(lambda: bool(server.engine.running))
        raw.shutdown(socket.SHUT_WR)
        assert b"[DONE]" not in everything(raw)
    wait_for(lambda: not server.engine.running)
    server.engine.stall_after = None
    assert server.chat().status_code == 200


def test_pipelined_requests_are_answered_in_turn(hasty, chat):
    with connect(hasty) as raw:
        raw.sendall(post(chat) * 3 + post(chat, "connection: close"))
        assert everything(raw).count(b"HTTP/1.1 200") == 4


def test_what_comes_behind_the_last_request_is_ignored(hasty, chat):
    hasty.engine.delay = 0.02
    for request in (post(chat, "connection: close"), post(chat, version="1.0")):
        with connect(hasty) as raw:
            raw.sendall(request)
            wait_for(lambda: hasty.engine.running)
            raw.sendall(b"\r\n")
            assert b"Hello, world!" in everything(raw)
    hasty.renew()


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_http_1_0_ends_with_the_connection(hasty, more):
    body = json.dumps(chat_body(**more)).encode()
    with connect(hasty) as raw:
        raw.sendall(post(body, version="1.0"))
        head, _, rest = everything(raw).partition(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n")[0]
    assert b"chunked" not in head.lower()
    assert rest.rstrip().endswith(b"[DONE]" if more else b"}")


def test_a_body_after_100_continue(hasty, chat):
    with connect(hasty) as raw:
        whole = post(chat, "expect: 100-continue", "connection: close")
        raw.sendall(whole[: -len(chat)])
        first = raw.recv(4096)
        raw.sendall(chat)
        assert first.startswith(b"HTTP/1.1 100")
        assert b"HTTP/1.1 200" in everything(raw)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # without a Host
        (b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 400_000, 431),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_http_has_an_error_too(hasty, sent, status):
    with connect(hasty) as raw:
        raw.sendall(sent)
        assert error_of(everything(raw))[0] == status


def test_who_still_sends_reads_why_it_is_refused(hasty):
    with connect(hasty) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 8_000_000)
        assert error_of(everything(raw)) == (431, "headers_too_large")


def test_who_was_refused_and_stays_is_cut(hasty, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("saccade_server.api.layers.connections.LINGER_SECONDS", 0.1)
    with connect(hasty) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert error_of(everything(raw))[0] == 400
        wait_for(lambda: not connections(hasty))


def test_garbage_within_a_body_ends_the_connection(hasty):
    with connect(hasty) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        wait_for(lambda: connections(hasty) == 1)
        raw.sendall(b"zz\r\n")
        assert error_of(everything(raw)) == (400, "invalid_http")
    assert hasty.chat().status_code == 200


@pytest.mark.parametrize("headers", [{f"x-{i}": "y" for i in range(101)}, {"x": "y" * 65_536}])
def test_headers_are_limited(hasty, headers):
    response = hasty.http.get("/live", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (431, "headers_too_large")
    assert response.headers["connection"] == "close"


def test_a_long_target_counts_with_the_headers(hasty):
    long = "/v1/models?" + "x" * 65_000
    assert hasty.http.get(long, headers={"x": "y" * 600}).status_code == 431
    assert hasty.http.get("/v1/models?" + "x" * 30_000).status_code == 200
    assert hasty.http.get("/live", headers={f"x-{i}": "y" for i in range(90)}).status_code == 200


def test_beyond_the_most_connections_only_probes_are_answered(make_server: MakeServer):
    server = make_server(max_connections=2)
    request = b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with connect(server), connect(server):
        wait_for(lambda: connections(server) == 2)
        for path, status in [
            (b"/live", 200),
            (b"/ready", 503),
            (b"/health", 503),
            (b"/v1/models", 200),
            (b"/v1/interventions", 503),
        ]:
            with connect(server) as raw:
                raw.sendall(request % path)
                reply = everything(raw)
            assert int(reply.split()[1]) == status, path
            assert b"connection: close" in reply.lower()
            if status == 503:
                assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["message"] == (
                    "Too many connections at once."
                )
    wait_for(lambda: not connections(server))
    assert server.chat().status_code == 200


def test_far_beyond_the_most_connections_a_probe_is_answered_still(make_server: MakeServer):
    server = make_server(max_connections=1)
    held = [connect(server) for _ in range(60)]
    try:
        # The last to give way: the first is within the most, and sixteen more may wait.
        assert everything(held[60 - 17]) == b""
        assert server.http.get("/live").status_code == 200
        assert server.http.get("/ready").status_code == 503
        assert connections(server) <= 17
    finally:
        for raw in held:
            raw.close()
    wait_for(lambda: not connections(server))
    assert server.chat().status_code == 200


def test_a_spare_connection_that_says_nothing_has_little_time(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("saccade_server.api.layers.connections.CROWDED_SECONDS", 0.1)
    server = make_server(max_connections=1, header_timeout=60)
    with connect(server), connect(server) as spare:
        assert everything(spare) == b""
        assert connections(server) == 1


def test_who_gives_way_is_nobody_that_is_being_answered(make_server: MakeServer):
    server = make_server(max_connections=1)
    asked, may_answer = threading.Event(), threading.Event()
    stats = server.engine.stats

    async def slow():
        asked.set()
        await asyncio.to_thread(may_answer.wait, PATIENCE)
        return await stats()

    server.engine.stats = slow
    with connect(server), connect(server) as probe:
        probe.sendall(b"GET /load HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert asked.wait(PATIENCE)
        others = [connect(server) for _ in range(20)]
        assert everything(others[0]) == b""
        may_answer.set()
        assert everything(probe).startswith(b"HTTP/1.1 200")
    for raw in others:
        raw.close()
    wait_for(lambda: not connections(server))
    assert not server.uvicorn.config.crowd


def test_without_room_even_there_a_connection_is_refused_at_once(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    server = make_server(max_connections=1)
    monkeypatch.setattr(Connection, "_make_room", lambda self: False)
    held = [connect(server) for _ in range(17)]
    try:
        wait_for(lambda: connections(server) == 17)
        with connect(server) as raw:
            reply = everything(raw)
        assert error_of(reply) == (503, "server_overloaded")
        assert b"retry-after: 1" in reply.lower()
    finally:
        for raw in held:
            raw.close()
