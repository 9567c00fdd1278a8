"""The line of each request: what it says, and what it never says."""

import logging
import socket
from typing import Any

import pytest

from saccade_testing.api.bodies import MODEL
from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.logged import access_entries, access_lines
from saccade_testing.api.server import MakeServer, Server, wait_for

PASTA = {"method": "pasta", "spans": [[0, 2]], "layers": [1], "alpha": 0.5}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "saccade.access")
    return caplog


def entry(logged: pytest.LogCaptureFixture) -> dict[str, Any]:
    """The only line since the last call."""
    wait_for(lambda: bool(access_entries(logged)))
    (found,) = access_entries(logged)
    logged.clear()
    return found


def test_what_it_says_of_an_answer(make_server: MakeServer, logged: Any) -> None:
    server = make_server(
        FakeEngine(cached_tokens=4), profiles={"p": {"interventions": [PASTA, {"method": "dola"}]}}
    )
    server.chat(intervention_profile="p", max_tokens=5, n=2, guided_regex=".*")
    found = entry(logged)
    assert found["grammar"] == "regex"
    assert found["message"] == "POST /v1/chat/completions 200"
    assert (found["model"], found["profile"], found["n"]) == (MODEL, "p", 2)
    assert found["interventions"] == ["pasta", "dola"]
    assert (found["completion_tokens"], found["cached_tokens"]) == (10, 4)
    assert found["prompt_tokens"] > 4
    assert found["finish"] == ["length"]
    assert 0 < found["first_token_seconds"] <= found["seconds"]
    assert {"queue_seconds", "prompt_seconds", "decode_seconds"} <= found.keys()
    assert not {"error", "lost", "images", "stream", "key_name", "trace_id"} & found.keys()


def test_what_it_says_of_a_refusal(server: Server, logged: Any) -> None:
    server.http.post("/v1/chat/completions", json={"model": MODEL, "messages": "x"})
    found = entry(logged)
    assert (found["message"], found["error"]) == ("POST /v1/chat/completions 400", "invalid_value")
    assert "model" not in found


def test_it_names_the_trace(server: Server, logged: Any) -> None:
    server.http.get("/live", headers={"traceparent": PARENT})
    found = entry(logged)
    assert (found["trace_id"], found["span_id"]) == (TRACE, "00f067aa0ba902b7")
    server.http.get("/live", headers={"traceparent": PARENT})
    wait_for(lambda: bool(access_lines(logged)))
    assert f" trace_id={TRACE} " in access_lines(logged)[0]
    logged.clear()
    server.http.get("/live", headers={"traceparent": "00-0-0-00"})
    assert "trace_id" not in entry(logged)


def test_a_trace_of_one_request_is_none_of_the_next(server: Server, logged: Any) -> None:
    """They may share a connection."""
    server.http.get("/live", headers={"traceparent": PARENT})
    assert "trace_id" in entry(logged)
    server.http.get("/live")
    assert "trace_id" not in entry(logged)


def ask(server: Server, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head + b"host: localhost\r\nconnection: close\r\n\r\n")
        while connection.recv(65536):
            pass


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://someone:password@localhost/v1/models?token=password HTTP/1.1\r\n",
        b"GET /v1/models?api_key=password HTTP/1.1\r\n",
        b"GET /v1/models HTTP/1.1\r\nauthorization: Bearer password\r\n",
        b"GET /v1/models HTTP/1.1\r\ncookie: password\r\nreferer: http://x/?password\r\n",
        b"GET /v1/models HTTP/1.1\r\ntracestate: password\r\ntraceparent: password\r\n",
        b"GET /v1/models HTTP/1.1\r\nx-request-id: a password\r\n",
    ],
)
def test_what_it_never_says(server: Server, logged: Any, head: bytes) -> None:
    ask(server, head)
    wait_for(lambda: bool(access_lines(logged)))
    assert "password" not in access_lines(logged)[0]
    assert "password" not in str(access_entries(logged)[0])


@pytest.mark.parametrize(
    "head",
    [
        b"GET /a%0a2026-11-28%20INFO%20saccade.access%20GET%20/forged%20200 HTTP/1.1\r\n",
        b"GET /%1b[2J%c2%9b31m%e2%80%a8x HTTP/1.1\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n",
        b"X" * 5000 + b" / HTTP/1.1\r\n",
        # A proxy on this machine is believed, whatever it says.
        b"GET / HTTP/1.1\r\nx-forwarded-for: 1.2.3.4 GET /forged 200 bytes=1\r\n",
        b"GET / HTTP/1.1\r\nx-forwarded-for: \x1b[2J\x9b31m\r\n",
        b"GET / HTTP/1.1\r\nx-forwarded-for: " + b"x" * 10_000 + b"\r\n",
    ],
)
def test_nobody_forges_a_line_or_a_field(server: Server, logged: Any, head: bytes) -> None:
    ask(server, head)
    wait_for(lambda: bool(access_lines(logged)))
    (line,) = access_lines(logged)
    assert line.isprintable()
    assert len(line) < 2000
    words = line.split(" ")
    assert words[2].isdigit()  # method, path, status
    assert sum(word.startswith("bytes=") for word in words) == 1
    assert len([word for word in words if word.startswith("client=")]) == 1
    if b"x-forwarded" in head:
        assert " client=- " in line


def test_there_is_none_where_none_is_wanted(make_server: MakeServer, logged: Any) -> None:
    make_server(FakeEngine(), access_log=False).http.get("/live")
    assert not access_entries(logged)
