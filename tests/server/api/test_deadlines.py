"""Deadlines hold in every queue, and whoever reads slowly holds no place in the engine."""

import json
import socket
import threading
import time

import pytest

from saccade_testing.api.bodies import chat_body
from saccade_testing.api.fakes import FakeEngine

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan", ""])
def test_a_time_that_is_none(seconds, make_server) -> None:
    answered = make_server().http.post(
        CHAT, json=chat_body(), headers={"x-request-timeout": seconds}
    )
    assert answered.status_code == 400
    assert answered.json()["error"]["param"] == "x-request-timeout"


def test_what_waits_for_nothing_has_no_time(make_server, caplog) -> None:
    server, odd = make_server(), {"x-request-timeout": "soon"}
    assert server.http.get("/v1/artifacts", headers=odd).status_code == 200
    assert server.http.delete(f"/v1/artifacts/{'0' * 64}", headers=odd).status_code == 403
    assert server.http.get(CHAT, headers=odd).status_code == 405
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_may_have_less_time_than_the_server_gives(stream, make_server) -> None:
    server = make_server(FakeEngine(stall_after=0))
    began = time.monotonic()
    answered = server.http.post(
        CHAT, json=chat_body(stream=stream), headers={"x-request-timeout": "0.5"}
    )
    assert (answered.status_code, answered.json()["error"]["code"]) == (504, "request_timeout")
    assert time.monotonic() - began < 5
    (request,) = server.engine.requests
    assert request.deadline is not None
    assert server.app.state.services.backlog.waiting.total() == 0


def test_it_is_not_the_servers_limit_that_grows(make_server) -> None:
    server = make_server(FakeEngine(stall_after=0), request_timeout=0.2)
    long = {"x-request-timeout": "1e9"}
    assert server.http.post(CHAT, json=chat_body(), headers=long).status_code == 504


def test_a_body_that_waits_to_be_parsed_has_no_more_time(make_server) -> None:
    server = make_server(prompt_workers=1)
    workers = server.app.state.services.workers
    go = threading.Event()
    workers.submit("", lambda: go.wait(30))
    try:
        large = chat_body(x="x" * 2**17)
        answered = server.http.post(CHAT, json=large, headers={"x-request-timeout": "0.2"})
        assert answered.status_code == 504
        assert not workers._lines, "what nobody waits for has left the queue"
    finally:
        go.set()
    assert not server.engine.requests


def test_who_reads_nothing_holds_no_place_in_the_engine(make_server) -> None:
    """Its answer is far more than sockets take; the engine ends it, and the backlog knows."""
    server = make_server(FakeEngine(answer="x" * 100), max_requests=4)
    body = json.dumps(chat_body(n=8, stream=True, logprobs=True, top_logprobs=20)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    backlog = server.app.state.services.backlog
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", server.port))
        link.sendall(head.encode() + body)
        until = time.monotonic() + 20
        while len(server.engine.requests) < 8 or server.engine.running:
            assert time.monotonic() < until
            time.sleep(0.01)
        while backlog.running + backlog.waiting.total():
            assert time.monotonic() < until
            time.sleep(0.01)
        assert server.app.state.lifecycle.in_flight == 1, "it has not been read"
    until = time.monotonic() + 20
    while server.app.state.lifecycle.in_flight:
        assert time.monotonic() < until
        time.sleep(0.01)
