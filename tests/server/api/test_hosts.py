"""Which names a server without keys answers to (DNS rebinding), and pages of other origins."""

import socket

import pytest

from saccade_server.api.layers.hosts import check_patterns, given_name
from saccade_testing.api.bodies import chat_body
from saccade_testing.api.server import MakeServer, Server

NAME = socket.gethostname()


def reply(server, *lines, method="GET", target="/v1/models", version="1.1"):
    head = "\r\n".join([f"{method} {target} HTTP/{version}", *lines, "connection: close"])
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head.encode("latin-1") + b"\r\n\r\n")
        pieces = []
        while piece := raw.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def status(server, *lines, **request):
    return int(reply(server, *lines, **request).split()[1])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "10.1.2.3",
        "0.0.0.0:80",
        "[::1]",
        "[::1]:8000",
        "[2001:db8::1]:1",
        "[fe80::1%25eth0]:8000",
        "localhost",
        "LocalHost:8000",
        "localhost.",
        "localhost.:8000",
        "localhost:",
        NAME,
        f"{NAME.upper()}:8000",
    ],
)
def test_hosts_that_are_answered(server: Server, host):
    assert status(server, f"host: {host}") == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "x",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "notlocalhost",
        f"{NAME}.evil.example",
        "127.1",
        "2130706433",
        "0x7f000001",
        "",
        "127.0.0.1:80:80",
        "::1",
        "[::1",
        "[localhost]",
        "user@127.0.0.1",
        "localhost/evil",
        "localhost, evil.example",
        "localhost evil.example",
        "évil.example",
        "localhost:8x",
        "a" * 300,
    ],
)
def test_hosts_that_are_not(server: Server, host):
    got = reply(server, f"host: {host}")
    assert got.split()[1] == b"421", got
    assert b'"code":"host_not_allowed"' in got
    assert b"--allowed-host" in got


def test_the_answer_names_the_option_and_the_host(server: Server):
    answer = server.http.get("/v1/models", headers={"host": "evil.example"})
    error = answer.json()["error"]
    assert answer.status_code == 421
    assert (error["type"], error["code"]) == ("invalid_request_error", "host_not_allowed")
    assert "--allowed-host evil.example" in error["message"]
    assert answer.headers["x-request-id"]


def test_nothing_is_done_for_another_host(server: Server):
    headers = {"host": "evil.example"}
    answer = server.http.post("/v1/chat/completions", json=chat_body(), headers=headers)
    assert answer.status_code == 421
    assert not server.engine.requests


@pytest.mark.parametrize("path", ["/live", "/ready", "/health"])
def test_probes_are_answered_whatever_the_host(server: Server, path):
    assert status(server, "host: evil.example", target=path) == 200


def test_old_clients_send_no_host(server: Server):
    assert status(server, version="1.0") == 200
    assert status(server, "host: evil.example", version="1.0") == 421
    assert status(server) == 400  # HTTP/1.1 has one


def test_two_hosts_and_targets_with_a_host_of_their_own(server: Server):
    assert status(server, "host: localhost", "host: evil.example") == 400
    assert status(server, "host: localhost", "host: localhost") == 400
    assert status(server, "host: evil.example", target="http://localhost/v1/models") == 421
    assert status(server, "host: localhost", target="http://evil.example/v1/models") == 404
    assert status(server, "host: evil.example", target="http://localhost/live") == 421


def test_forwarded_names_are_not_hosts(server: Server):
    assert status(server, "host: evil.example", "x-forwarded-host: localhost") == 421
    assert status(server, "host: localhost", "x-forwarded-host: evil.example") == 200


def test_listed_hosts(make_server: MakeServer):
    server = make_server(allowed_hosts=check_patterns(["Saccade", "*.Example.com", "one.test."]))
    for host in ("saccade:8000", "a.example.com", "a.b.EXAMPLE.com.", "one.test", "localhost"):
        assert status(server, f"host: {host}") == 200, host
    for host in ("example.com", "badexample.com", "a.one.test", "saccade.evil.example"):
        assert status(server, f"host: {host}") == 421, host


def test_any_host(make_server: MakeServer):
    server = make_server(allowed_hosts=("*",))
    assert status(server, "host: evil.example") == 200


def test_with_keys_any_host(make_server: MakeServer):
    server = make_server(api_keys=("secret",))
    assert status(server, "host: evil.example", "authorization: Bearer secret") == 200
    assert status(server, "host: evil.example") == 401


@pytest.mark.parametrize(
    "pattern", ["", "http://x", "x:8000", "x/y", "*x.example", "a.*.example", "[::1]", "ü.example"]
)
def test_patterns_that_match_nothing_are_refused(pattern):
    with pytest.raises(ValueError, match="--allowed-host"):
        check_patterns([pattern])


def test_the_name_a_server_listens_on_is_its_own():
    assert given_name("gpu-box.lan") == ("gpu-box.lan",)
    assert [given_name(host) for host in ("", "0.0.0.0", "::", "127.0.0.1")] == [()] * 4
