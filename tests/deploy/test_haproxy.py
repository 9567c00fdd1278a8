"""The HAProxy configuration that is shipped, run by a real haproxy before servers on loopback."""

import asyncio
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from saccade_client import Saccade
from saccade_server.requests.profiles import read_profiles
from saccade_testing.api.bodies import chat_body, parse_events
from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.server import REGISTRY, Server, check_servers, start_server, wait_for
from saccade_testing.proxied import FOLDER, HAPROXY, Proxy

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")

QUICK = {"CHECK_INTERVAL": "50ms", "REPLACED_AFTER": "1"}


class Behind:
    """Servers, and a proxy before them."""

    def __init__(self, folder: Path, servers: list[Server], **variables: str) -> None:
        self.servers = servers
        self.proxy = Proxy(folder, [server.port for server in servers], **QUICK | variables)
        self.url = self.proxy.url
        self.http = httpx2.Client(base_url=self.url, timeout=20, trust_env=False)
        self.proxy.wait_until_ready()

    def chat(self, text: str = "Hi", **fields: Any) -> httpx2.Response:
        messages = [{"role": "user", "content": text}]
        return self.http.post("/v1/chat/completions", json=chat_body(messages=messages, **fields))

    def asked(self) -> list[int]:
        """How many requests each engine got since this was called."""
        counts = [len(server.engine.requests) for server in self.servers]
        for server in self.servers:
            server.engine.requests.clear()
        return counts

    def until_said(self, *words: str) -> None:
        """Wait until HAProxy has said all of this in one line of its log.

        Where its first look at a server failed, on a busy machine, the next is an interval later.
        """
        wait_for(lambda: any(all(w in line for w in words) for line in self.said()), 40)

    def said(self) -> list[str]:
        return self.proxy.log.read_text().splitlines()

    def close(self) -> None:
        self.http.close()
        self.proxy.end()
        for server in self.servers:
            server.stop()
        check_servers()


@contextmanager
def behind(folder: Path, *engines: FakeEngine, **variables: str) -> Iterator[Behind]:
    found = Behind(folder, [start_server(engine) for engine in engines], **variables)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with behind(tmp_path_factory.mktemp("haproxy"), FakeEngine(), FakeEngine()) as found:
        found.until_said("replica2", "succeeded")
        yield found


@pytest.fixture
def two(shared: Behind) -> Behind:
    for server in shared.servers:
        server.renew()
    shared.asked()
    return shared


@pytest.mark.parametrize("deployment", ["first", "any", "0123456789abcdef"])
def test_the_configuration_is_valid_as_it_is_shipped(deployment: str) -> None:
    assert HAPROXY is not None
    done = subprocess.run(
        [HAPROXY, "-c", "-f", str(FOLDER / "haproxy.cfg")],
        env={
            "AFFINITY_LUA": f"{FOLDER}/affinity.lua",
            "DEPLOYMENT": deployment,
            "METRICS_BIND": "127.0.0.1:1",
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
SMALL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def turns(number: int, *before: dict[str, Any], parts: tuple[Any, ...] = ()) -> Iterator[bytes]:
    """Three turns of a conversation, as one client writes them."""
    text = f'{number}: what is "this"? [{{\\'
    content: Any = [*parts, {"type": "text", "text": text}] if parts else text
    messages = [*before, {"role": "user", "content": content}]
    for turn in range(3):
        body = {"model": "m", "messages": messages, "max_tokens": turn + 1}
        yield json.dumps(body, separators=(",", ":") if number % 2 else None).encode()
        messages = [
            *messages,
            {"role": "assistant", "content": f"{turn} user"},
            {"role": "user", "content": "And?" * (turn + 1)},
        ]


SYSTEM = {"role": "system", "content": 'Say "user" briefly.', "name": "user"}
SHAPES: dict[str, Callable[[int], Iterator[bytes]]] = {
    "a question": turns,
    "behind a system message": lambda at: turns(at, SYSTEM),
    "behind several messages": lambda at: turns(at, SYSTEM, {"role": "assistant", "content": ""}),
    "an image and a question": lambda at: turns(at, parts=(SMALL,)),
    "text before a large image": lambda at: turns(at, parts=(f"{at}", PICTURE)),
    "a continuation": lambda at: (
        json.dumps({"prompt": f"{at} " + "x" * 300 + "y" * turn}).encode() for turn in range(3)
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_turns_of_a_conversation_go_to_one_replica(two: Behind, shape: str) -> None:
    used = []
    for number in range(12):
        replicas = set()
        for body in SHAPES[shape](number):
            before = len(served(two))
            two.http.post("/v1/chat/completions", content=body)
            wait_for(lambda before=before: len(served(two)) > before)
            replicas.add(served(two)[-1])
        assert len(replicas) == 1, number
        used += replicas
    # conversations are told apart, in either way of writing them
    assert len(set(used[::2])) == len(set(used[1::2])) == 2


def served(two: Behind) -> list[str]:
    """Which replica answered each POST, whatever it said, as HAProxy's log tells."""
    return [line.split()[3] for line in two.said() if '"POST ' in line]


def test_the_key_of_the_sdk_is_used_as_it_is(two: Behind) -> None:
    with Saccade(two.url) as client:
        for number in range(4):
            first = [{"role": "user", "content": f"{number}?"}]
            later = [*first, {"role": "assistant", "content": "x"}, *first]
            for messages in (first, later, first):
                client.chat(messages, max_tokens=2)
            assert sorted(two.asked()) == [0, 3]


def test_a_replica_that_is_full_is_passed_over_and_so_is_nothing_lost(two: Behind) -> None:
    two.servers[0].engine.capacity = False
    assert {two.chat(str(number)).status_code for number in range(8)} == {200}
    assert two.asked() == [0, 8]


def test_nobody_has_room(two: Behind) -> None:
    for server in two.servers:
        server.engine.capacity = False
    assert two.chat().json()["error"]["code"] in ("server_overloaded", "no_replica")
    two.until_said("replicas has no server available")
    wait_for(lambda: two.chat().json()["error"]["code"] == "no_replica")
    reply = two.chat()
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
    assert reply.json()["error"]["code"] == "no_replica"
    assert two.http.get("/proxy/ready").status_code == 503
    for server in two.servers:
        server.engine.capacity = True
    wait_for(lambda: two.chat().status_code == 200)


@pytest.mark.parametrize("path", ["/metrics", "/%6detrics"])
def test_figures_of_one_replica_are_not_shown(two: Behind, path: str) -> None:
    reply = two.http.get(path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


def test_a_client_that_leaves_frees_what_its_request_holds(two: Behind) -> None:
    for server in two.servers:
        server.engine.stall_after = 1
    with socket.create_connection(("127.0.0.1", two.proxy.port), 10) as raw:
        body = json.dumps(chat_body()).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        head += "content-type: application/json\r\ncontent-length: "
        raw.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: any(server.engine.running for server in two.servers))
    wait_for(lambda: not any(server.engine.running for server in two.servers))


def test_tokens_pass_as_they_come(two: Behind) -> None:
    for server in two.servers:
        server.engine.stall_after = 2
    with two.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as response:
        pieces = response.iter_text()
        text = next(pieces)
        for server in two.servers:
            server.engine.stall_after = None
        text += "".join(pieces)
    assert parse_events(text)[-1] == "[DONE]"


def test_what_was_begun_is_not_sent_to_another(two: Behind) -> None:
    """It may be what the engine died of."""
    for server in two.servers:
        server.engine.stall_after = 1
    replies: list[httpx2.Response] = []
    asking = threading.Thread(target=lambda: replies.append(two.chat()))
    asking.start()
    wait_for(lambda: any(server.engine.running for server in two.servers))
    (hit,) = [server for server in two.servers if server.engine.running]
    hit.engine.alive = False
    hit.engine.stall_after = None
    asking.join(10)
    assert replies[0].status_code == 500
    assert replies[0].json()["error"]["code"] == "engine_dead"
    assert sorted(two.asked()) == [0, 1]


def test_a_replica_that_goes_away_inside_a_request_is_said_to_have_gone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, dying(listener) as heard:
        proxy = Proxy(tmp_path, [listener.getsockname()[1]], **QUICK)
        try:
            proxy.wait_until_ready()
            reply = httpx2.post(f"{proxy.url}/v1/chat/completions", json={}, trust_env=False)
        finally:
            proxy.end()
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "replica_lost")
    assert sum(request.startswith(b"POST") for request in heard) == 1


@contextmanager
def dying(listener: socket.socket) -> Iterator[list[bytes]]:
    """What looks ready, and cuts every other connection once it has read from it."""
    heard: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                heard.append(connection.recv(65536))
                if heard[-1].startswith(b"GET"):
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield heard
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_draining_costs_no_request_and_large_bodies_a_retry_of_the_client(tmp_path: Path) -> None:
    # looked at so seldom that nothing but what replicas say keeps requests from them
    with behind(tmp_path, FakeEngine(delay=0.02), FakeEngine(), CHECK_INTERVAL="30s") as two:
        two.until_said("replica2", "succeeded")
        texts = [f"{number}" for number in range(8)]
        for text in texts:
            two.chat(text)
        assert all(two.asked())
        requests = [server.engine.requests for server in two.servers]
        two.servers[0].engine.stall_after = 1
        streams: list[list[object]] = []
        asking = [
            threading.Thread(target=lambda text=text: streams.append(events(two, text)))
            for text in texts
        ]
        for thread in asking:
            thread.start()
        wait_for(lambda: sum(map(len, requests)) == len(texts))
        assert two.servers[0].engine.running
        drained = two.servers[0]
        asyncio.run_coroutine_threadsafe(drained.app.state.lifecycle.shutdown(20), drained.loop)
        wait_for(lambda: drained.app.state.lifecycle.draining)
        two.asked()
        assert {two.chat(text).status_code for text in texts} == {200}
        assert two.asked()[0] == 0
        drained.engine.stall_after = None
        for thread in asking:
            thread.join(20)
        assert all(said[-1] == "[DONE]" and "error" not in said[-2] for said in streams)
        # What does not fit HAProxy's buffer cannot be sent again by it.
        large = {"metadata": {"x": "y" * 200_000}}
        replies = [two.chat(text, **large) for text in texts]
        assert {reply.status_code for reply in replies} == {200, 503}
        refused = [reply for reply in replies if reply.status_code == 503]
        assert {reply.json()["error"]["code"] for reply in refused} == {"server_draining"}
        assert all(reply.headers["retry-after"] == "1" for reply in refused)


def events(two: Behind, text: str) -> list[object]:
    return parse_events(two.chat(text, stream=True).text)


def become_another(server: Server) -> None:
    profiles = {"grounded": {"interventions": [{"method": "var"}]}}
    server.app.state.services.profiles.replace(read_profiles({"profiles": profiles}, REGISTRY))


def test_another_deployment_gets_no_request_and_the_log_says_why(tmp_path: Path) -> None:
    with behind(tmp_path, FakeEngine(), FakeEngine(), FakeEngine()) as three:
        for name in ("replica1", "replica2", "replica3"):
            three.until_said(name, "succeeded")
        become_another(three.servers[2])
        three.until_said("replica3", "is of the deployment", "request is for")
        assert {three.chat(str(number)).status_code for number in range(9)} == {200}
        assert three.asked()[2] == 0
        # Both that are right go: once nothing is left of them, what is there is the deployment.
        for server in three.servers[:2]:
            server.engine.alive = False
        assert three.chat().status_code in (500, 503)
        time.sleep(0.5)
        assert three.asked()[2] == 0, "busy or ill is not gone"
        for server in three.servers[:2]:
            server.uvicorn.should_exit = True
        wait_for(lambda: three.chat().status_code == 200, 15)
        assert three.asked()[2] == 1


def test_a_replica_that_became_another_between_two_looks_gets_no_request(tmp_path: Path) -> None:
    with behind(tmp_path, FakeEngine(), FakeEngine(), CHECK_INTERVAL="30s") as two:
        two.until_said("replica2", "succeeded")
        become_another(two.servers[0])
        assert {two.chat(str(number)).status_code for number in range(8)} == {200}
        assert two.asked() == [0, 8]
