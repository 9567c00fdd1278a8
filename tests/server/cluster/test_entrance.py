"""What a proxy's middleware does to requests and answers, around an application that plays Ray."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_client.affinity import affinity_key
from saccade_server.affinity import HEADER
from saccade_server.api.settings import ApiSettings
from saccade_server.cluster import entrance
from saccade_server.cluster.entrance import middlewares
from saccade_server.cluster.names import REPLICA

BODY = {"model": "m+grounded", "messages": [{"role": "user", "content": "What is there?"}]}
CHAT = "/v1/chat/completions"


class Ray:
    """Ray's own application: keeps what it is given, and answers as it is told."""

    def __init__(self, *messages: Message, error: Exception | None = None) -> None:
        self.messages = messages
        self.error = error
        self.scopes: list[Scope] = []
        self.body = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["method"] in ("POST", "PUT"):
            self.body = (await receive())["body"]
        for message in self.messages:
            await send(message)
        if self.error:
            raise self.error

    @property
    def headers(self) -> httpx2.Headers:
        return httpx2.Headers(self.scopes[-1]["headers"])


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(text: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.response.body", "body": text, "more_body": more}


def served(*headers: tuple[bytes, bytes]) -> Message:
    """The beginning of a replica's answer."""
    return start(200, (REPLICA.encode(), b"r1"), (b"x-request-id", b"rays"), *headers)


def around(app: ASGIApp) -> ASGIApp:
    for middleware in middlewares():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    return app


def asked(app: ASGIApp, method: str = "POST", path: str = CHAT, **request: Any) -> httpx2.Response:
    async def ask() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=around(app), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://proxy") as client:
            return await client.request(method, path, **request)

    return asyncio.run(ask())


def code(response: httpx2.Response) -> str:
    return str(response.json()["error"]["code"])


def test_a_request_without_a_key_gets_that_of_our_clients() -> None:
    ray = Ray(served(), body())
    asked(ray, json=BODY)
    assert ray.headers[HEADER] == affinity_key(BODY)
    assert json.loads(ray.body) == BODY


def test_a_key_that_came_is_kept() -> None:
    ray = Ray(served(), body())
    asked(ray, json=BODY, headers={HEADER: "feedfacefeedface"})
    assert ray.headers.get_list(HEADER) == ["feedfacefeedface"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000, b"{}", b'{"messages": 1}', b""])
def test_what_has_no_key_is_sent_on_as_it_is(content: bytes) -> None:
    ray = Ray(served(), body())
    asked(ray, content=content, headers={"content-type": "application/json"})
    assert HEADER not in ray.headers
    assert ray.body == content


def test_large_bodies_are_keyed_and_very_large_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = {"prompt": "a" * (entrance.AT_ONCE_BYTES + 1)}
    ray = Ray(served(), body())
    asked(ray, json=large)
    assert ray.headers[HEADER] == affinity_key(large)
    monkeypatch.setattr(entrance, "KEYED_BYTES", entrance.AT_ONCE_BYTES)
    asked(ray, json=large)
    assert HEADER not in ray.headers


def test_bodies_are_limited_before_ray_keeps_them() -> None:
    ray = Ray(served(), body())
    size = ApiSettings("").max_body_bytes + 1
    answer = asked(
        ray, content=b"x", headers={"content-type": "application/json", "content-length": f"{size}"}
    )
    assert (answer.status_code, code(answer)) == (413, "request_too_large")
    assert not ray.scopes


def test_an_id_is_one_of_ours_or_a_good_one_and_answered_once() -> None:
    ray = Ray(served(), body())
    answer = asked(ray, json=BODY, headers={"x-request-id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert ray.headers["x-request-id"] == "mine-1"
    answer = asked(ray, json=BODY, headers={"x-request-id": "no good"})
    (given,) = answer.headers.get_list("x-request-id")
    assert given == ray.headers["x-request-id"] != "no good"


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (503, [], (503, "no_replica", "1")),
        (503, [(b"retry-after", b"7")], (503, "no_replica", "7")),
        (429, [], (503, "no_replica", "1")),
        (404, [], (503, "no_replica", "5")),
        (408, [], (504, "request_timeout", None)),
        (500, [], (500, "replica_lost", "1")),
    ],
)
def test_rays_own_refusals_are_error_objects(
    status: int, headers: list[tuple[bytes, bytes]], expected: tuple[int, str, str | None]
) -> None:
    plain = start(status, (b"content-type", b"text/plain; charset=utf-8"), *headers)
    answer = asked(Ray(plain, body(b"Request dropped", True), body()), json=BODY)
    assert (answer.status_code, code(answer), answer.headers.get("retry-after")) == expected
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_a_replicas_own_refusal_is_left_alone() -> None:
    refusal = start(404, (REPLICA.encode(), b"r1"), (b"content-type", b"text/plain"))
    answer = asked(Ray(refusal, body(b"no such trace")), "GET", "/v1/traces/x")
    assert (answer.status_code, answer.text) == (404, "no such trace")


def test_rays_own_pages_are_left_alone() -> None:
    answer = asked(Ray(start(503), body(b"DRAINING")), "GET", "/-/healthz")
    assert (answer.status_code, answer.text) == (503, "DRAINING")


def test_a_request_whose_replica_is_lost_is_told() -> None:
    answer = asked(Ray(), json=BODY)
    assert (answer.status_code, code(answer)) == (500, "replica_lost")
    assert answer.headers["retry-after"] == "1"


def test_a_surprise_in_the_proxy_says_nothing_of_itself() -> None:
    answer = asked(Ray(error=ValueError("secret")), json=BODY)
    assert (answer.status_code, code(answer)) == (500, "internal_error")
    assert "secret" not in answer.text


def sent(app: ASGIApp) -> list[Message]:
    """Every message that a server is given to send."""
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}
    asyncio.run(_called(around(app), scope, receive, send))
    return messages


async def _called(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


def test_a_stream_whose_replica_is_lost_ends_with_an_error_event() -> None:
    stream = served((b"content-type", b"text/event-stream; charset=utf-8"))
    *_, first, last = sent(Ray(stream, body(b"data: 1\n\n", True)))
    assert first == body(b"data: 1\n\n", True)
    events = last["body"].decode().split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert events[1] == "data: [DONE]"
    assert not last.get("more_body")


def test_a_whole_answer_that_is_cut_stays_cut() -> None:
    """Its length is announced: whatever stood in for the rest would pass for it."""
    partial = Ray(served((b"content-length", b"100")), body(b"{", True))
    assert sent(partial)[-1] == body(b"{", True)


def test_an_answer_that_ended_is_left_alone() -> None:
    assert [m.get("body") for m in sent(Ray(served(), body(b"{}")))] == [None, b"{}"]


def test_the_variable_is_for_ray_to_read() -> None:
    environment: dict[str, str] = {}
    entrance.announce(environment)
    module, _, name = environment[entrance.VARIABLE].rpartition(".")
    assert module == entrance.__name__
    made: Callable[[], Any] = getattr(entrance, name)
    assert made is middlewares
    kept = {entrance.VARIABLE: "mine"}
    entrance.announce(kept)
    assert kept == {entrance.VARIABLE: "mine"}
