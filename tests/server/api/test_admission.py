"""Places and the memory of bodies: who takes them, when, and what those hear who find none."""

import json
import socket
import time
import tracemalloc

import pytest

from saccade_server.api.layers.admission import _pieces
from saccade_server.api.layers.bodies import LimitBodies, parsed_bytes
from saccade_testing.api.bodies import chat_body
from saccade_testing.api.server import MakeServer, Server, wait_for

MIB = 1024 * 1024
CHAT = "/v1/chat/completions"
READINESS = ("/ready", "/health")
WITHOUT_PLACE = ("/live", "/version", "/load", "/v1/models", "/v1/models/saccade-test")


def send(server, body, length=None, method="POST", path=CHAT):
    """A connection that has sent a head and what there is of the body."""
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    kind = "application/json" if method == "POST" else "application/octet-stream"
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n"
    raw.sendall(f"{head}content-length: {length or len(body)}\r\n\r\n".encode() + body)
    return raw


def answer(raw):
    """Status, headers and error code of one answer."""
    head, _, body = raw.recv(65536).partition(b"\r\n\r\n")
    while not body:
        body = raw.recv(65536)
    code = json.loads(body)["error"]["code"] if b'"error":{' in body else None
    return int(head.split()[1]), head.lower(), code


def budget(server):
    layer = server.app.middleware_stack
    while not isinstance(layer, LimitBodies):
        layer = layer.app
    return layer.budget


def padded(size):
    """A chat whose body has so many bytes."""
    body = json.dumps(chat_body(user="")).encode()
    return body.replace(b'"user": ""', b'"user": "%s"' % (b"x" * (size - len(body))))


def test_when_requests_are_refused_the_server_is_not_ready(make_server: MakeServer):
    server = make_server(max_requests=2)
    lifecycle = server.app.state.lifecycle
    for path in (*READINESS, *WITHOUT_PLACE):
        assert server.http.get(path).status_code == 200
    with lifecycle.track():
        assert server.http.get("/ready").status_code == 200
        with lifecycle.track():
            refused = server.chat()
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            for path in READINESS:
                response = server.http.get(path)
                assert response.status_code == 503
                assert response.json()["error"]["code"] == "server_overloaded"
                assert server.http.head(path).status_code == 503
            for path in WITHOUT_PLACE:
                assert server.http.get(path).status_code == 200, path
            assert server.http.get("/load").json()["http_requests"] == 2
            assert server.http.get("/v1/interventions").status_code == 503
    for path in READINESS:
        assert server.http.get(path).status_code == 200
    assert server.chat().status_code == 200


def test_what_needs_no_place_is_answered_in_a_drain(make_server: MakeServer):
    server = make_server()
    server.app.state.lifecycle.drain()
    for path in READINESS:
        assert server.http.get(path).json()["error"]["code"] == "server_draining"
    for path in WITHOUT_PLACE:
        assert server.http.get(path).status_code == 200, path
    assert server.http.get("/load").json()["draining"] is True
    assert server.chat().json()["error"]["code"] == "server_draining"


def test_a_slow_body_keeps_no_place_from_others(make_server: MakeServer):
    server = make_server(max_requests=1)
    lifecycle = server.app.state.lifecycle
    body = json.dumps(chat_body()).encode()
    with send(server, body[:-1], len(body)) as slow:
        wait_for(lambda: budget(server).used == len(body) - 1)
        assert lifecycle.in_flight == 0
        assert server.http.get("/ready").status_code == 200
        assert server.chat().status_code == 200
        slow.sendall(body[-1:])
        assert answer(slow)[0] == 200


def test_a_body_that_nobody_asked_for_keeps_no_place_from_others(make_server: MakeServer):
    server = make_server(max_requests=1)
    lifecycle = server.app.state.lifecycle
    with send(server, b"ab", 3, "GET", "/v1/interventions") as slow:
        wait_for(lambda: len(lifecycle._open) == 1)
        assert server.http.get("/ready").status_code == 200
        assert server.chat().status_code == 200
        slow.sendall(b"c")
        assert answer(slow)[0] == 200


def test_who_never_sends_a_body_that_nobody_asked_for_is_answered(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("saccade_server.api.layers.read_out.DISCARD_SECONDS", 0.2)
    server = make_server()
    for path in ("/v1/interventions", "/live"):
        with send(server, b"", 3, "GET", path) as raw:
            assert raw.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_body_that_is_there_when_all_places_are_taken(make_server: MakeServer):
    server = make_server(max_requests=1)
    body = json.dumps(chat_body()).encode()
    with send(server, body[:-1], len(body)) as slow:
        wait_for(lambda: budget(server).used == len(body) - 1)
        with server.app.state.lifecycle.track():
            slow.sendall(body[-1:])
            status, head, code = answer(slow)
    assert (status, code) == (503, "server_overloaded")
    assert b"retry-after: 1" in head
    assert not server.engine.requests


def test_one_request_takes_one_place(make_server: MakeServer):
    server = make_server(max_requests=2)
    lifecycle = server.app.state.lifecycle
    server.engine.stall_after = 2
    fields = chat_body(stream=True, n=4)
    with server.http.stream("POST", CHAT, json=fields) as response:
        next(pieces := response.iter_text())
        assert lifecycle.in_flight == 1
        assert server.http.get("/load").json()["http_requests"] == 1
        server.engine.stall_after = None
        list(pieces)
    wait_for(lambda: lifecycle.in_flight == budget(server).used == 0)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [(CHAT, b"{", 400), ("/nothing", b"{}", 404), ("/v1/models", b"{}", 405)],
)
def test_what_is_refused_gives_everything_back(server: Server, path, body, status):
    headers = {"content-type": "application/json"}
    assert server.http.post(path, content=body, headers=headers).status_code == status
    # what is given back, is so once the answer has been sent
    wait_for(lambda: server.app.state.lifecycle.in_flight == budget(server).used == 0)


def test_bodies_share_their_memory(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("saccade_server.api.layers.read_out.DISCARD_SECONDS", 0.05)
    server = make_server(max_bodies_bytes=2 * MIB)
    first, second = (padded(size) for size in (MIB, MIB - 4096))
    with send(server, first[:-1], len(first)) as one, send(server, second[:-1], len(second)):
        whole = len(first) + len(second) - 2
        wait_for(lambda: budget(server).used == whole)
        # announced, and refused before it is sent
        with send(server, b"", MIB) as third:
            status, head, code = answer(third)
        assert (status, code) == (503, "server_overloaded")
        assert b"retry-after: 1" in head
        # not announced
        chunks = (b"x" * 1024 for _ in range(512))
        refused = server.http.post(
            CHAT, content=chunks, headers={"content-type": "application/json"}
        )
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        wait_for(lambda: budget(server).used == whole)
        assert server.chat().status_code == 200  # small ones find room
        one.sendall(first[-1:])
        assert answer(one)[0] == 200
        wait_for(lambda: budget(server).used == len(second) - 1)
    wait_for(lambda: budget(server).used == 0)


def test_uploads_count_too(make_server: MakeServer):
    server = make_server(max_bodies_bytes=2 * MIB, max_artifact_bytes=2 * MIB, admin_keys=("root",))
    path = "/v1/artifacts/" + "0" * 64
    head = {"authorization": "Bearer root"}
    body = padded(MIB)
    with send(server, body[:-1], len(body)):
        wait_for(lambda: budget(server).used == len(body) - 1)
        refused = server.http.put(path, content=bytes(2 * MIB), headers=head)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    # Whoever may not upload takes no memory.
    assert server.http.put(path, content=bytes(MIB)).status_code == 401
    wait_for(lambda: budget(server).used == 0)
    assert server.http.put(path, content=bytes(MIB), headers=head).status_code == 400


def test_a_body_above_the_budget_is_too_large(make_server: MakeServer):
    server = make_server(max_bodies_bytes=64 * 1024)
    body = padded(128 * 1024)
    headers = {"content-type": "application/json"}
    for content in (body, iter([body])):
        response = server.http.post(CHAT, content=content, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (
            413,
            "request_too_large",
        )
    assert server.chat().status_code == 200


@pytest.mark.parametrize("piece", [b"[]", b"{}", b"0", b'{"a":1}', b'""', b"[[]]", b"1.5"])
def test_what_json_becomes_counts(make_server: MakeServer, piece):
    server = make_server(max_bodies_bytes=4 * MIB)
    values = b",".join([piece] * (600_000 // (len(piece) + 1)))
    body = json.dumps(chat_body()).encode()[:-1] + b', "x": [' + values + b"]}"
    response = server.http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert "memory" in response.json()["error"]["message"]
    wait_for(lambda: budget(server).used == 0)


def test_the_estimate_of_parsed_json_is_one():
    assert parsed_bytes(b"") == parsed_bytes(b"x" * 1_000_000) == 0
    assert parsed_bytes(b"[" * 600_000) == 2 * parsed_bytes(b"," * 300_000)
    assert parsed_bytes(b"[1, 2, 3]") >= 3 * 36  # a list's pointers, and integers
    assert parsed_bytes(b'{"a": 1}') >= 184


@pytest.mark.parametrize(
    "value",
    [
        [[]] * 30_000,
        [{}] * 30_000,
        list(range(1000, 31_000)),
        ["ab"] * 30_000,
        {f"key {at}": at + 1000 for at in range(30_000)},
        [{"type": "text", "text": "ab"}] * 10_000,
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_estimate_is_no_less_than_what_parsing_takes(value):
    body = json.dumps(value, separators=(",", ":")).encode()
    tracemalloc.start()
    try:
        assert json.loads(body) == value
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken <= parsed_bytes(body) + 2 * len(body)  # the body as a text, too


def test_a_client_that_leaves_in_its_body_gives_its_memory_back(make_server: MakeServer):
    server = make_server()
    body = json.dumps(chat_body()).encode()
    with send(server, body[:-1], len(body)):
        wait_for(lambda: budget(server).used == len(body) - 1)
    wait_for(lambda: budget(server).used == 0)


def test_a_slow_body_has_one_deadline(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch):
    """Each byte does not begin it anew."""
    monkeypatch.setattr("saccade_server.api.layers.read_out.DISCARD_SECONDS", 0.05)
    server = make_server(body_timeout=0.4)
    body = padded(4096)
    with send(server, body[:1], len(body)) as raw:
        raw.settimeout(0.05)
        reply = b""
        end = time.monotonic() + 20
        for byte in body[1:]:
            assert time.monotonic() < end
            try:
                raw.sendall(bytes([byte]))
                reply = raw.recv(65536)
            except TimeoutError:
                continue
            break
    assert reply.split()[1] == b"408"
    wait_for(lambda: budget(server).used == 0)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_an_answer_is_the_same_in_pieces(size):
    body = bytes(index % 251 for index in range(size))
    message = {"type": "http.response.body", "body": body, "more_body": False}
    pieces = list(_pieces(message))
    assert b"".join(piece["body"] for piece in pieces) == body
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert max(len(piece["body"]) for piece in pieces) <= 65_536
    assert len(pieces) == max(1, -(-size // 65_536))


def test_an_answer_that_is_not_read_keeps_its_place(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    server = make_server(max_requests=1, send_timeout=1.0)
    lifecycle = server.app.state.lifecycle
    monkeypatch.setattr(server.prompts, "text", lambda tokens: "x" * 2**24, raising=False)
    body = json.dumps({"tokens": [72]}).encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", server.port))
        head = f"POST /detokenize HTTP/1.1\r\nhost: [::1]\r\ncontent-length: {len(body)}\r\n"
        raw.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        assert raw.recv(15) == b"HTTP/1.1 200 OK"
        assert lifecycle.in_flight == 1
        assert server.http.get("/ready").status_code == 503
        wait_for(lambda: not lifecycle.in_flight, 20)  # it is given up
    assert server.http.get("/ready").status_code == 200
