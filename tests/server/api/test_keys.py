"""Keys have names, and a request is its key's wherever it goes."""

import pytest

from saccade_server.api.access.keys import Key, KeyRing, digest_of, plain_keys
from saccade_testing.api.bodies import chat_body

CHAT = "/v1/chat/completions"
RING = KeyRing((*plain_keys(["one", "two"], ["root"]), Key("carol", digest_of("three"))))


def key(value: str) -> dict[str, str]:
    return {"authorization": f"Bearer {value}"}


@pytest.mark.parametrize(
    ("sent", "name"),
    [("one", "api-key-1"), ("two", "api-key-2"), ("root", "admin-key-1"), ("three", "carol")],
)
def test_a_key_is_found_by_what_was_sent(sent: str, name: str) -> None:
    found = RING.find(f"bearer  {sent} ")
    assert found is not None
    assert found.name == name
    assert found.admin == (sent == "root")
    assert found.digest.hex() not in repr(found)
    assert str(found.digest) not in repr(found)


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer four", "Basic one", "one", "Bearer carol"])
def test_anything_else_is_no_key(sent: str) -> None:
    assert RING.find(sent) is None


def test_what_a_request_asks_of_the_engine_has_the_name_of_its_key(make_server) -> None:
    server = make_server(api_keys=("one", "two"), admin_keys=("root",))
    for sent in ("two", "root", "one"):
        assert server.http.post(CHAT, json=chat_body(n=2), headers=key(sent)).status_code == 200
    score = {"prompt": "ab", "continuations": ["c", "d"]}
    assert server.http.post("/v1/score", json=score, headers=key("one")).status_code == 200
    owners = [request.owner for request in server.engine.requests]
    assert all(request.origin.request_id for request in server.engine.requests)
    assert owners == [*["api-key-2"] * 2, *["admin-key-1"] * 2, *["api-key-1"] * 4]
    assert server.http.post(CHAT, json=chat_body(), headers=key("three")).status_code == 401


def test_without_keys_requests_are_nobodys(make_server) -> None:
    for server in (make_server(), make_server(admin_keys=("root",))):
        assert server.http.post(CHAT, json=chat_body()).status_code == 200
        assert server.http.post(CHAT, json=chat_body(), headers=key("x")).status_code == 200
        assert [request.owner for request in server.engine.requests] == ["", ""]


def test_a_connection_does_not_keep_the_key_of_the_request_before(make_server) -> None:
    server = make_server(admin_keys=("root",))
    large = chat_body(user="x" * 300_000)  # its reading pauses, and goes on in the request's task
    for _ in range(3):
        assert server.http.post(CHAT, json=large, headers=key("root")).status_code == 200
        assert server.http.post(CHAT, json=chat_body()).status_code == 200
    assert [request.owner for request in server.engine.requests] == ["admin-key-1", ""] * 3


@pytest.mark.parametrize("secret", ["l\u00e0", "\u00c5\u2026"])
def test_keys_end_with_any_letter(secret: str) -> None:
    """Bytes of UTF-8 that would be blanks of latin-1, in which headers are read."""
    ring = KeyRing([Key("a", digest_of(secret))])
    assert ring.find(f"Bearer {secret.encode().decode('latin-1')}") is not None
