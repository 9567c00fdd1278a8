"""Artifacts and profiles as both clients send them."""

import hashlib
from pathlib import Path

import httpx2
import pytest

from saccade_client import APIError, Conflict, InvalidInput, artifact_id

DATA = b"bytes of an artifact"
DIGITS = hashlib.sha256(DATA).hexdigest()
NAME = f"sha256:{DIGITS}"


def made(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(201, json={"id": NAME, "kind": "heads", "bytes": len(DATA)})


@pytest.mark.parametrize("source", [DATA, bytearray(DATA), memoryview(DATA), "file", "path"])
def test_an_upload_is_put_under_its_digest_with_the_admin_key(harness, tmp_path: Path, source):
    if isinstance(source, str):
        path = tmp_path / "a.safetensors"
        path.write_bytes(DATA)
        source = path if source == "path" else str(path)
    keys = {"api_key": "user", "admin_key": "root"}
    assert harness.ask(made, lambda client: client.put_artifact(source), **keys).id == NAME
    (request,) = harness.requests
    assert (request.method, request.url.path) == ("PUT", f"/v1/artifacts/{DIGITS}")
    assert request.content == DATA
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["authorization"] == "Bearer root"


def test_the_admin_key_is_sent_nowhere_else(harness, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SACCADE_ADMIN_KEY", "root")
    reply = httpx2.Response(200, json={"data": []})
    assert harness.ask(lambda _: reply, lambda client: client.artifacts(), api_key="user") == []
    assert harness.requests[-1].headers["authorization"] == "Bearer user"
    harness.ask(made, lambda client: client.put_artifact(DATA))
    assert harness.requests[-1].headers["authorization"] == "Bearer root"


def test_bytes_are_checked_against_their_name(harness):
    def fetch(client):
        return client.get_artifact(DIGITS)

    assert harness.ask(lambda _: httpx2.Response(200, content=DATA), fetch) == DATA
    with pytest.raises(APIError) as caught:
        harness.ask(lambda _: httpx2.Response(200, content=b"others"), fetch)
    assert caught.value.code == "invalid_response"


@pytest.mark.parametrize(("status", "there"), [(200, True), (404, False)])
def test_whether_it_is_there_is_asked_by_head(harness, status, there):
    reply = httpx2.Response(status)
    assert harness.ask(lambda _: reply, lambda client: client.has_artifact(NAME)) is there
    assert harness.requests[0].method == "HEAD"


def test_a_deletion_takes_the_admin_key(harness):
    def gone(request):
        return httpx2.Response(200, json={"id": NAME, "object": "artifact", "deleted": True})

    keys = {"api_key": "user", "admin_key": "root"}
    answer = harness.ask(gone, lambda client: client.delete_artifact(DIGITS), **keys)
    assert (answer.id, answer.deleted) == (NAME, True)
    (request,) = harness.requests
    assert (request.method, request.url.path) == ("DELETE", f"/v1/artifacts/{DIGITS}")
    assert request.headers["authorization"] == "Bearer root"


def test_one_that_a_profile_names_is_a_conflict(harness):
    error = {"message": "The profile names it.", "code": "artifact_in_use"}
    reply = httpx2.Response(409, json={"error": error})
    with pytest.raises(Conflict, match="names it"):
        harness.ask(lambda _: reply, lambda client: client.delete_artifact(NAME))


def test_what_a_list_says_of_use(harness):
    facts = {"id": NAME, "kind": "vectors", "created": 5, "last_used": None, "uses": 3}
    listing = {"data": [facts], "total_bytes": 7, "max_bytes": 9, "ttl_seconds": None}
    reply = httpx2.Response(200, json=listing)
    (found,) = harness.ask(lambda _: reply, lambda client: client.artifacts())
    assert (found.created, found.last_used, found.uses, found.profile) == (5, None, 3, None)


@pytest.mark.parametrize("name", ["", "abc", NAME.upper(), NAME + "0", "../x", 3])
def test_a_name_that_is_none_is_refused_here(harness, name):
    with pytest.raises(InvalidInput, match="64 hexadecimal digits"):
        harness.ask(made, lambda client: client.get_artifact(name))
    assert not harness.requests


def test_a_file_that_is_not_there(harness, tmp_path: Path):
    for source in (tmp_path / "none", 3):
        with pytest.raises(InvalidInput, match="cannot be read"):
            harness.ask(made, lambda client, source=source: client.put_artifact(source))
    assert artifact_id(DATA) == NAME


def test_a_profile_goes_into_its_field(harness):
    body = {"choices": [{"message": {"content": "Hi"}}], "intervention_profile": "mine"}

    def answer(request):
        return httpx2.Response(200, json=body)

    reply = harness.ask(answer, lambda client: client.chat("Hi", model="m", profile="mine"))
    assert reply.intervention_profile == "mine"
    assert harness.bodies[0]["intervention_profile"] == "mine"
    assert "profile" not in harness.bodies[0]
    assert "interventions" not in harness.bodies[0]
