"""Keys, request ids, probes, slow and odd connections."""

import asyncio
import json
import logging
import socket
import time

import openai
import pytest

from saccade_server.api import health
from saccade_server.engine.watchdog import Lag
from saccade_testing.api.bodies import MODEL, chat_body
from saccade_testing.api.logged import access_lines
from saccade_testing.api.server import MakeServer, Server, wait_for


def raw_request(server, data, read=True):
    """Send bytes, return all that comes back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(data)
        pieces = []
        while read and (piece := raw.recv(65536)):
            pieces.append(piece)
    return b"".join(pieces)


@pytest.fixture(scope="module")
def keys():
    return ("first-key", "second-key")


def test_every_route_but_the_probes_needs_a_key(make_server: MakeServer, keys):
    server = make_server(api_keys=keys)
    for method, path in [
        ("GET", "/v1/models"),
        ("GET", "/v1/interventions"),
        ("GET", "/version"),
        ("GET", "/load"),
        ("GET", "/openapi.json"),
        ("GET", "/nothing"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/interventions/validate"),
    ]:
        response = server.http.request(method, path)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]
    for path in ("/live", "/ready", "/health"):
        assert server.http.get(path).status_code == 200


def test_strangers_take_no_place(make_server: MakeServer, keys):
    server = make_server(api_keys=keys, max_requests=1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-length: 1000\r\n\r\n{"
        )
        time.sleep(0.1)  # it is being read out before it is refused
        assert server.app.state.lifecycle.in_flight == 0
        assert server.openai(api_key=keys[0]).models.list().data[0].id == MODEL


def test_any_of_the_keys_opens(make_server: MakeServer, keys):
    server = make_server(api_keys=keys)
    for key in keys:
        assert server.openai(api_key=key).models.list().data[0].id == MODEL
    for key in ("x", "first-ke", "first-key2", "ключ", "first-key,second-key"):
        header = f"Bearer {key}".encode()
        assert server.http.get("/v1/models", headers={"authorization": header}).status_code == 401
    basic = {"authorization": "Basic first-key"}
    assert server.http.get("/v1/models", headers=basic).status_code == 401
    with pytest.raises(openai.AuthenticationError):
        server.openai(api_key="no").models.list()


def test_keys_are_not_shown(make_server: MakeServer, keys):
    assert "first-key" not in repr(make_server(api_keys=keys).settings)


@pytest.mark.parametrize("name", ["abc-123_x.Y", "a" * 128])
def test_a_request_id_is_echoed(server: Server, name):
    assert server.http.get("/live", headers={"x-request-id": name}).headers["x-request-id"] == name


@pytest.mark.parametrize("name", ["", "a b", "a" * 129, "x;y", "../etc", "ü".encode()])
def test_an_odd_request_id_is_replaced(server: Server, name):
    given = server.http.get("/live", headers={"x-request-id": name}).headers["x-request-id"]
    assert len(given) == 32
    assert given.isalnum()


def test_a_line_break_in_a_header_is_no_header(server: Server):
    reply = raw_request(
        server,
        b"GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        b"x-request-id: a\rset-cookie: b\r\n\r\n",
    )
    assert b"set-cookie" not in reply.split(b"\r\n\r\n")[0].lower()


def test_one_line_is_logged_for_each_request(server: Server, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "saccade.access"):
        server.http.get("/v1/models/a%0d%0aFAKE", headers={"x-request-id": "my-id"})
        server.http.get("/live")
        # A line is written after the answer has been sent.
        wait_for(lambda: len(access_lines(caplog)) == 2)
    lines = access_lines(caplog)
    assert " 404 " in lines[0]
    assert " request_id=my-id" in lines[0]
    assert len(lines[0].splitlines()) == 1


def test_models(server: Server):
    client = server.openai()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "saccade"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_probes(server: Server):
    for path in ("/live", "/ready", "/health"):
        response = server.http.get(path)
        assert (response.status_code, response.content) == (200, b"")
        assert server.http.head(path).status_code == 200


def test_a_full_queue_is_not_ready(server: Server):
    server.engine.capacity = False
    assert server.http.get("/ready").status_code == 503
    assert server.http.get("/live").status_code == 200


def test_an_engine_that_does_not_get_on_loses_ready_and_then_live(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    """At one and at two times either limit; nothing of it asks the engine."""

    async def never():
        raise AssertionError("a probe asked the engine")

    monkeypatch.setattr(server.engine, "stats", never, raising=False)
    silence, step = server.settings.silence_timeout, server.settings.step_timeout

    def probes(lag):
        server.engine.lag = lag
        return [server.http.get(path).status_code for path in ("/health", "/ready", "/live")]

    for lag in (Lag(), Lag(silence - 1, 0), Lag(0, step - 1)):
        assert probes(lag) == [200, 200, 200]
    for lag in (Lag(silence, 0), Lag(0, step), Lag(2 * silence - 1, 2 * step - 1)):
        assert probes(lag) == [503, 503, 200]
    for lag in (Lag(2 * silence, 0), Lag(0, 2 * step)):
        assert probes(lag) == [503, 503, 503]
    refusal = server.http.get("/live")
    assert refusal.json()["error"]["code"] == "engine_hung"
    assert refusal.headers["retry-after"] == "5"
    assert probes(Lag()) == [200, 200, 200]


def test_version_and_load(server: Server):
    assert set(server.http.get("/version").json()) == {"version", "deployment"}
    load = server.http.get("/load").json()
    assert load["running"] == 0
    assert load["draining"] is False
    assert load["http_requests"] == 0


def test_the_load_of_a_busy_engine(server: Server, monkeypatch: pytest.MonkeyPatch):
    async def busy():
        await asyncio.sleep(10)

    monkeypatch.setattr(health, "STATS_SECONDS", 0.05)
    monkeypatch.setattr(server.engine, "stats", busy, raising=False)
    response = server.http.get("/load")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_the_api_describes_itself(server: Server):
    document = server.http.get("/openapi.json").json()
    assert "/v1/chat/completions" in document["paths"]
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert name.isidentifier()
    references = {piece.split('"')[0] for piece in text.split("#/components/schemas/")[1:]}
    assert references <= set(document["components"]["schemas"])


def test_an_announced_size_is_refused_before_it_is_sent(server: Server):
    reply = raw_request(
        server,
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\n"
        b"expect: 100-continue\r\ncontent-length: 99999999999\r\n\r\n",
    )
    assert reply.startswith(b"HTTP/1.1 413")
    assert b"request_too_large" in reply


def test_a_body_that_does_not_come(make_server: MakeServer):
    server = make_server(body_timeout=0.2)
    reply = raw_request(
        server,
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\n"
        b"expect: 100-continue\r\ncontent-length: 100\r\n\r\n{",
    )
    assert b"HTTP/1.1 408" in reply
    assert b"request_timeout" in reply


def test_a_client_that_leaves_in_its_body(server: Server):
    raw_request(
        server,
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\n"
        b"content-length: 100\r\n\r\n{",
        read=False,
    )
    assert server.chat().status_code == 200


def test_http_1_0(server: Server):
    body = json.dumps(chat_body()).encode()
    reply = raw_request(
        server,
        b"POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body),
    )
    assert reply.startswith(b"HTTP/1.1 200")
    assert b"Hello, world!" in reply
