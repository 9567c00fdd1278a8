"""Pages of other origins: off unless listed, and then for every answer."""

import asyncio
import threading

import pytest

from saccade_server.api.layers.cors import check_origins
from saccade_testing.api.bodies import chat_body
from saccade_testing.api.server import MakeServer, Server, start_server

ORIGIN = "http://localhost:5173"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-timeout",
}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def listed():
    server = start_server(
        cors_origins=(ORIGIN, "https://app.example"), api_keys=("secret",), max_requests=1
    )
    yield server
    server.stop()


def allowed(response):
    return response.headers.get("access-control-allow-origin")


def test_off_by_default(server: Server):
    assert server.http.options(CHAT, headers=PREFLIGHT).status_code == 405
    response = server.http.get("/v1/models", headers={"origin": ORIGIN})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_any_origin(make_server: MakeServer):
    server = make_server(cors_origins=("*",))
    preflight = server.http.options(CHAT, headers=PREFLIGHT)
    assert (preflight.status_code, allowed(preflight)) == (200, "*")
    response = server.http.post(CHAT, json=chat_body(), headers={"origin": "null"})
    assert (response.status_code, allowed(response)) == (200, "*")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD"])
def test_a_preflight_needs_no_key(listed, method):
    headers = {**PREFLIGHT, "access-control-request-method": method}
    preflight = listed.http.options(CHAT, headers=headers)
    assert (preflight.status_code, allowed(preflight)) == (200, ORIGIN)
    assert method in preflight.headers["access-control-allow-methods"]
    assert "x-stainless-timeout" in preflight.headers["access-control-allow-headers"]
    assert preflight.headers["x-request-id"]
    assert "Origin" in preflight.headers["vary"]


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:5174", "null"])
def test_other_origins_are_refused(listed, origin):
    preflight = listed.http.options(CHAT, headers={**PREFLIGHT, "origin": origin})
    assert preflight.status_code == 400
    assert allowed(preflight) is None
    error = preflight.json()["error"]
    assert error["code"] == "cors_not_allowed"
    assert "--cors-origin" in error["message"]
    assert int(preflight.headers["content-length"]) == len(preflight.content)
    headers = {"origin": origin, "authorization": "Bearer secret"}
    assert allowed(listed.http.get("/v1/models", headers=headers)) is None


def test_a_page_reads_answers_and_their_headers(listed):
    headers = {"origin": ORIGIN, "authorization": "Bearer secret"}
    response = listed.http.post(CHAT, json=chat_body(), headers=headers)
    assert (response.status_code, allowed(response)) == (200, ORIGIN)
    exposed = response.headers["access-control-expose-headers"]
    for name in ("x-request-id", "retry-after", "x-intervention-fingerprint", "x-should-retry"):
        assert name in exposed
    assert "access-control-allow-credentials" not in response.headers


def test_a_page_reads_errors_of_every_layer(listed):
    key = {"origin": ORIGIN, "authorization": "Bearer secret"}
    typed = {"content-type": "text/plain"}
    http = listed.http
    lifecycle = listed.app.state.lifecycle
    errors = {
        401: http.get("/v1/models", headers={"origin": ORIGIN}),
        404: http.get("/nothing", headers=key),
        405: http.get(CHAT, headers=key),
        400: http.post(CHAT, json={}, headers=key),
        415: http.post(CHAT, content=b"{}", headers=key | typed),
        413: http.post(CHAT, content=bytes(2 * 1024 * 1024), headers=key),
        431: http.get("/v1/models", headers=key | {"x": "y" * 65_536}),
    }
    with lifecycle.track():
        errors[503] = http.post(CHAT, json=chat_body(), headers=key)
    for status, response in errors.items():
        if status == 413:  # the type is checked later than the size
            assert "exceeds" in response.json()["error"]["message"]
        assert (response.status_code, allowed(response)) == (status, ORIGIN)
        assert response.json()["error"]["message"]


def test_a_page_reads_why_nothing_else_was_answered(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    """What nobody foresaw, and a server that ends."""
    server = make_server(cors_origins=(ORIGIN,))

    def fail(*args, **kwargs):
        raise RuntimeError("secret")

    monkeypatch.setattr(server.prompts, "chat", fail, raising=False)
    headers = {"origin": ORIGIN}
    surprise = server.http.post(CHAT, json=chat_body(), headers=headers)
    assert (surprise.status_code, allowed(surprise)) == (500, ORIGIN)
    assert "secret" not in surprise.text

    began, may_end = threading.Event(), threading.Event()

    def stay(*args, **kwargs):
        began.set()
        may_end.wait(60)
        raise AssertionError("nobody waits for this")

    def end():
        began.wait(60)
        asyncio.run_coroutine_threadsafe(server.app.state.lifecycle.abandon(0.3), server.loop)

    monkeypatch.setattr(server.prompts, "chat", stay, raising=False)
    threading.Thread(target=end, daemon=True).start()
    try:
        abandoned = server.http.post(CHAT, json=chat_body(), headers=headers)
    finally:
        may_end.set()
    assert (abandoned.status_code, allowed(abandoned)) == (503, ORIGIN)


def test_a_wrong_host_is_readable_too(make_server: MakeServer):
    server = make_server(cors_origins=(ORIGIN,))
    headers = {"origin": ORIGIN, "host": "evil.example"}
    response = server.http.get("/v1/models", headers=headers)
    assert (response.status_code, allowed(response)) == (421, ORIGIN)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_what_a_page_may_send_unasked_does_nothing(server: Server, kind):
    """Without a preflight a browser sends these three types, a blob without any."""
    headers = {"origin": "http://evil.example"} | ({"content-type": kind} if kind else {})
    body = b'{"messages": [{"role": "user", "content": "Hi"}]}'
    response = server.http.post(CHAT, content=body, headers=headers)
    assert response.status_code == 415
    assert not server.engine.requests


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("*", "*"),
        ("null", "null"),
        ("https://App.Example", "https://app.example"),
        (" http://[::1]:3000 ", "http://[::1]:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_origins(given, origin):
    assert check_origins([given]) == (origin,)


@pytest.mark.parametrize(
    "given", ["", "localhost", "http://localhost:5173/", "http://x/y", "*.x", "http://*.x", "http:"]
)
def test_origins_that_match_nothing_are_refused(given):
    with pytest.raises(ValueError, match="--cors-origin"):
        check_origins([given])
