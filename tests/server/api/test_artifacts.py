"""Artifacts over HTTP: who may put what, and what comes back."""

import asyncio
import hashlib
import os
import pickle
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest

from saccade_interventions.artifacts import read_artifact, write_artifact
from saccade_server.api.artifact_store import ArtifactStore, StoreFullError
from saccade_server.api.digest_folder import ABANDONED_SECONDS
from saccade_server.api.layers import read_out
from saccade_testing.api.server import MakeServer, start_server

ADMIN = {"authorization": "Bearer root"}
MODEL = "sha256:" + "ab" * 32
OTHER_MODEL = "sha256:" + "cd" * 32


def heads(*pairs, model=MODEL, notes=""):
    return write_artifact("heads", model, {"heads": np.asarray(pairs, np.int32)}, notes)


def name(data):
    return hashlib.sha256(data).hexdigest()


HEADS = heads((0, 1), (3, 2), notes="two heads")
PATH = f"/v1/artifacts/{name(HEADS)}"


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "artifacts"
    server = start_server(admin_keys=("root", "second"), artifacts=folder)
    yield server
    server.stop()


@pytest.fixture
def serving(started):
    """A server with an empty folder."""
    for path in started.settings.artifacts.iterdir():
        path.unlink()
    return started


def put(server, data, path=None, **headers):
    path = path or f"/v1/artifacts/{name(data)}"
    return server.http.put(path, content=data, headers={**ADMIN, **headers})


def code(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["code"]


def test_put_and_get_and_head(serving):
    first = put(serving, HEADS)
    assert first.status_code == 201
    assert first.headers["location"] == PATH
    card = first.json()
    assert abs(card.pop("created") - time.time()) < 10
    assert card == {
        "id": f"sha256:{name(HEADS)}",
        "object": "artifact",
        "kind": "heads",
        "bytes": len(HEADS),
        "notes": "two heads",
        "defaults": {},
        "fits": True,
        "last_used": None,
        "uses": 0,
        "profile": None,
    }
    assert put(serving, HEADS).status_code == 200
    got = serving.http.get(PATH)
    assert got.content == HEADS
    assert got.headers["content-type"] == "application/octet-stream"
    assert "immutable" in got.headers["cache-control"]
    head = serving.http.head(PATH)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(HEADS))
    listed = serving.http.get("/v1/artifacts").json()["data"]
    assert listed == [first.json()]


def test_the_folder_holds_it_under_its_digest_and_nothing_else(serving):
    put(serving, HEADS)
    (found,) = serving.settings.artifacts.iterdir()
    assert found.name == f"{name(HEADS)}.safetensors"
    assert found.read_bytes() == HEADS


def test_another_server_on_the_same_folder_has_it(serving, make_server: MakeServer):
    put(serving, HEADS)
    other = make_server(artifacts=serving.settings.artifacts)
    assert other.http.get(PATH).content == HEADS
    assert len(other.http.get("/v1/artifacts").json()["data"]) == 1


def test_without_a_folder_uploads_last_as_long_as_the_server(make_server: MakeServer):
    server = make_server(admin_keys=("root",))
    folder = server.app.state.services.artifacts._files.folder
    assert put(server, HEADS).status_code == 201
    assert server.http.get(PATH).content == HEADS
    assert folder.stat().st_mode & 0o077 == 0
    server.stop()
    assert not folder.exists()


def test_only_an_admin_key_puts(make_server: MakeServer):
    server = make_server(api_keys=("user",), admin_keys=("root", "second"))

    def with_key(key):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return server.http.put(PATH, content=HEADS, headers=headers)

    assert code(with_key(None), 401) == "invalid_api_key"
    assert code(with_key("wrong"), 401) == "invalid_api_key"
    assert code(with_key("user"), 403) == "admin_key_required"
    assert with_key("second").status_code == 201
    user, admin = ({"authorization": f"Bearer {key}"} for key in ("user", "root"))
    assert code(server.http.get(PATH), 401) == "invalid_api_key"
    assert server.http.get(PATH, headers=user).content == HEADS
    assert server.http.get("/v1/models", headers=admin).status_code == 200


def test_with_no_api_keys_putting_still_needs_the_admin_key(serving):
    bare = serving.http.put(PATH, content=HEADS)
    assert code(bare, 401) == "invalid_api_key"
    assert bare.headers["www-authenticate"] == "Bearer"
    wrong = serving.http.put(PATH, content=HEADS, headers={"authorization": "Bearer x"})
    assert code(wrong, 403) == "admin_key_required"


def test_without_an_admin_key_nobody_puts(make_server: MakeServer):
    server = make_server(api_keys=("user",))
    response = server.http.put(PATH, content=HEADS, headers={"authorization": "Bearer user"})
    assert code(response, 403) == "admin_key_not_configured"
    assert "--admin-key" in response.json()["error"]["message"]


def nan_inside():
    vectors = np.ones((1, 8), np.float32)
    good = write_artifact(
        "head_vectors", MODEL, {"heads": np.array([[0, 0]], np.int32), "vectors": vectors}
    )
    return good.replace(vectors.tobytes(), np.full((1, 8), np.nan, np.float32).tobytes())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "artifact_invalid"),
        (b"\x00" * 64, "artifact_invalid"),
        (HEADS[:-3], "artifact_invalid"),
        (HEADS + b"!", "artifact_invalid"),
        (pickle.dumps({"heads": [[0, 1]]}), "artifact_invalid"),
        (nan_inside(), "artifact_invalid"),
        ((10**9).to_bytes(8, "little") + b"{" + b" " * 100, "artifact_invalid"),
        (heads((0, 1), model=OTHER_MODEL), "artifact_mismatch"),
        (heads((4, 0)), "artifact_mismatch"),
        (heads((0, 4)), "artifact_mismatch"),
    ],
    ids=["empty", "zeros", "cut", "longer", "pickle", "nan", "header", "model", "layer", "head"],
)
def test_what_is_no_artifact_of_this_model(serving, data, expected):
    assert code(put(serving, data), 400) == expected
    assert not list(serving.settings.artifacts.iterdir())
    assert put(serving, HEADS).status_code == 201
    assert serving.chat().status_code == 200


def test_the_name_must_be_that_of_the_bytes(serving):
    other = put(serving, HEADS, f"/v1/artifacts/{'0' * 64}")
    assert code(other, 400) == "artifact_hash_mismatch"
    assert name(HEADS) in other.json()["error"]["message"]
    for wrong in ("abc", name(HEADS).upper(), "0" * 63, f"sha256:{name(HEADS)}"):
        assert code(put(serving, HEADS, f"/v1/artifacts/{wrong}"), 400) == "invalid_value"
    assert not list(serving.settings.artifacts.iterdir())


@pytest.mark.parametrize(
    "path", ["..%2f..%2fetc%2fpasswd", "../../etc/passwd", "%00", "a" * 5000, "0" * 64]
)
def test_no_path_leads_out_of_the_folder(serving, path):
    (serving.settings.artifacts.parent / "secret.safetensors").write_bytes(HEADS)
    for found in ("../secret", path):
        response = serving.http.get(f"/v1/artifacts/{found}")
        assert response.status_code == 404
        assert serving.http.head(f"/v1/artifacts/{found}").status_code == 404
        assert put(serving, HEADS, f"/v1/artifacts/{found}").status_code in (400, 404)
    assert not list(serving.settings.artifacts.iterdir())


def with_notes(text):
    """An artifact whose notes are this JSON text."""
    data = heads((0, 1), notes="@")
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"@"', text)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def test_what_could_not_be_listed_is_not_kept(serving):
    refused = put(serving, with_notes(rb'"\ud800"'))
    assert code(refused, 400) == "artifact_invalid"
    assert "surrogate" in refused.json()["error"]["message"]
    assert put(serving, with_notes(rb'"\ud83d\ude00"')).json()["notes"] == "\U0001f600"
    assert len(serving.http.get("/v1/artifacts").json()["data"]) == 1


def test_a_damaged_file_is_not_served_and_is_put_right(serving):
    path = serving.settings.artifacts / f"{name(HEADS)}.safetensors"
    for wrong in (HEADS[:-3], HEADS[:-1] + b"!"):
        path.write_bytes(wrong)
        assert code(serving.http.get(PATH), 404) == "artifact_not_found"
        assert serving.http.head(PATH).status_code == 404
        assert put(serving, HEADS).status_code == 201
        assert serving.http.get(PATH).content == HEADS
    assert put(serving, HEADS).status_code == 200


@pytest.mark.parametrize("asked", ["bytes=0-3", "bytes=99999-", "bytes=x", "bytes=0-1,4-5"])
def test_ranges_are_answered_with_the_whole(serving, asked):
    put(serving, HEADS)
    got = serving.http.get(PATH, headers={"range": asked})
    assert (got.status_code, got.content) == (200, HEADS)
    assert got.headers["accept-ranges"] == "none"
    assert serving.http.head(PATH, headers={"range": asked}).status_code == 200


def test_sizes_are_bounded(make_server: MakeServer):
    server = make_server(admin_keys=("root",), max_artifact_bytes=1000, max_artifacts_bytes=1500)
    big = heads(*((0, i) for i in range(4)), notes="n" * 1000)
    assert code(put(server, big), 413) == "request_too_large"
    chunks = (big[i : i + 100] for i in range(0, len(big), 100))
    response = server.http.put(f"/v1/artifacts/{name(big)}", content=chunks, headers=ADMIN)
    assert code(response, 413) == "request_too_large"
    one, two = (heads((0, i), notes="n" * 700) for i in range(2))
    assert put(server, one).status_code == 201
    assert code(put(server, two), 413) == "artifact_store_full"
    assert put(server, one).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"content-type": "application/json"}, {"content-encoding": "gzip"}]
)
def test_other_media_are_refused(serving, headers):
    assert code(put(serving, HEADS, **headers), 415) == "unsupported_media_type"
    for kind in ("application/octet-stream", "application/safetensors"):
        assert put(serving, HEADS, **{"content-type": kind}).status_code in (200, 201)


def raw(server, length):
    """A connection whose request announces ``length`` bytes of body."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    head = f"PUT {PATH} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer root\r\n"
    connection.sendall(f"{head}content-length: {length}\r\n\r\n".encode())
    return connection


def test_a_body_that_does_not_come_is_not_waited_for(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(read_out, "DISCARD_SECONDS", 0.1)
    server = make_server(admin_keys=("root",), upload_timeout=0.2)
    with raw(server, len(HEADS)) as connection:
        connection.sendall(HEADS[:10])
        assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]
    assert server.http.get(PATH).status_code == 404


def test_a_body_that_breaks_off_leaves_nothing(serving):
    with raw(serving, len(HEADS)) as connection:
        connection.sendall(HEADS[:-1])
    assert put(serving, heads((1, 1))).status_code == 201
    assert serving.http.get(PATH).status_code == 404
    assert len(list(serving.settings.artifacts.iterdir())) == 1


def test_two_puts_at_once_keep_one(serving):
    async def both():
        async with httpx2.AsyncClient(base_url=serving.url, trust_env=False) as client:
            puts = (client.put(PATH, content=HEADS, headers=ADMIN) for _ in range(4))
            return [response.status_code for response in await asyncio.gather(*puts)]

    assert sorted(asyncio.run(both())) == [200, 200, 200, 201]


def test_a_file_that_was_changed_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = ArtifactStore(tmp_path, 10**6)
    path = tmp_path / f"{name(HEADS)}.safetensors"
    for wrong in (b"junk", heads((1, 1))):
        path.write_bytes(wrong)
        assert store.get(f"sha256:{name(HEADS)}") is None
    assert store.listing() == []
    path.write_bytes(HEADS)
    (tmp_path / "other.txt").write_text("mine")
    assert store.get(f"sha256:{name(HEADS)}").tensors["heads"].tolist() == [[0, 1], [3, 2]]
    assert [item.about.notes for item in store.listing()] == ["two heads"]


def test_what_is_kept_in_memory_is_bounded(tmp_path: Path):
    store = ArtifactStore(tmp_path, 10**6, cached_bytes=20)
    made = [heads((0, i)) for i in range(4)]
    artifacts = [read_artifact(data) for data in made]
    for artifact, data in zip(artifacts, made, strict=True):
        assert store.put(artifact, data)
        assert not store.put(artifact, data)
    assert len(store._cache) == 2
    for artifact in artifacts:
        assert store.get(artifact.digest) == artifact
    assert len(store._cache) == 2
    assert store.get(artifacts[-1].digest) is store.get(artifacts[-1].digest)
    (tmp_path / f"{name(made[-1])}.safetensors").unlink()
    assert store.get(artifacts[-1].digest) is None


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = ArtifactStore(tmp_path, 10**6)

    def full(handle):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        store.put(read_artifact(HEADS), HEADS)
    assert not list(tmp_path.iterdir())
    assert store.get(f"sha256:{name(HEADS)}") is None
    with pytest.raises(StoreFullError):
        ArtifactStore(tmp_path, 10).put(read_artifact(HEADS), HEADS)


def test_what_is_in_memory_does_not_wait_for_a_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, other = ArtifactStore(tmp_path, 10**6), heads((1, 1))
    store.put(read_artifact(HEADS), HEADS)
    writing, written = threading.Event(), threading.Event()

    def slow(handle):
        writing.set()
        assert written.wait(10)

    monkeypatch.setattr("os.fsync", slow)
    with ThreadPoolExecutor(2) as threads:
        keeping = threads.submit(store.put, read_artifact(other), other)
        assert writing.wait(10)
        try:
            found = threads.submit(store.get, f"sha256:{name(HEADS)}").result(5)
        finally:
            written.set()
        assert keeping.result(10)
    assert found.tensors["heads"].tolist() == [[0, 1], [3, 2]]


def test_unfinished_uploads_count_and_go_when_they_are_old(tmp_path: Path):
    for name_, age in ((".upload-new", 60), (".upload-old", 2 * ABANDONED_SECONDS)):
        (tmp_path / name_).write_bytes(bytes(500))
        os.utime(tmp_path / name_, (time.time() - age,) * 2)
    store = ArtifactStore(tmp_path, 500 + len(HEADS) - 1)
    assert [path.name for path in tmp_path.iterdir()] == [".upload-new"]
    with pytest.raises(StoreFullError):
        store.put(read_artifact(HEADS), HEADS)
    (tmp_path / ".upload-new").unlink()
    assert store.put(read_artifact(HEADS), HEADS)
    assert len(store.listing()) == 1
