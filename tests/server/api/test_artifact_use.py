"""What becomes of artifacts: deleted, used, unused for long; by several servers of one folder."""

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from saccade_interventions.artifacts import read_artifact, write_artifact
from saccade_server.api import artifact_expiry, artifact_use
from saccade_server.api.artifact_store import ArtifactStore
from saccade_server.api.artifact_use import Use, UseLog
from saccade_server.api.reloading import Reloadable, reload
from saccade_testing.api.bodies import chat_body
from saccade_testing.api.server import MakeServer, start_server, wait_for
from saccade_testing.launch import environment

ADMIN = {"authorization": "Bearer root"}
MODEL = "sha256:" + "ab" * 32


def vector(value: float = 1.0) -> bytes:
    tensors = {"vectors": np.full((1, 32), value, np.float32), "layers": np.array([2])}
    return write_artifact("vectors", MODEL, tensors)


def name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


DATA = vector()
NAME = name(DATA)
PATH = f"/v1/artifacts/{NAME}"
ENTRY = {"method": "steering", "artifact": f"sha256:{NAME}"}


def code(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]["code"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    """Two servers of one folder."""
    folder = tmp_path_factory.mktemp("store")
    made = [start_server(admin_keys=("root",), artifacts=folder) for _ in range(2)]
    yield made
    for server in made:
        server.stop()


@pytest.fixture
def replicas(pair):
    """Two servers of one folder, which has an artifact that nobody used."""
    made = pair
    for server in made:
        server.renew()
        server.app.state.services.artifacts._use.forget(NAME)
    for path in made[0].settings.artifacts.iterdir():
        path.unlink()
    assert made[0].http.put(PATH, content=DATA, headers=ADMIN).status_code == 201
    return made


def listed(server):
    return server.http.get("/v1/artifacts").json()


def test_deleted_by_one_it_is_gone_for_all(replicas):
    one, other = replicas
    assert other.chat(interventions=[ENTRY]).status_code == 200
    gone = one.http.delete(PATH, headers=ADMIN)
    assert gone.json() == {"id": f"sha256:{NAME}", "object": "artifact", "deleted": True}
    for server in replicas:
        assert code(server.http.get(PATH), 404) == "artifact_not_found"
        assert code(server.chat(interventions=[ENTRY]), 404) == "artifact_not_found"
        assert code(server.http.delete(PATH, headers=ADMIN), 404) == "artifact_not_found"
        assert (listed(server)["data"], listed(server)["total_bytes"]) == ([], 0)
    assert other.http.put(PATH, content=DATA, headers=ADMIN).status_code == 201
    assert one.chat(interventions=[ENTRY]).status_code == 200


def test_it_takes_an_admin_key_and_a_name(replicas):
    server = replicas[0]
    assert code(server.http.delete(PATH), 401) == "invalid_api_key"
    wrong = {"authorization": "Bearer x"}
    assert code(server.http.delete(PATH, headers=wrong), 403) == "admin_key_required"
    for path in ("abc", "..%2f..%2fetc", "%00", "0" * 64):
        response = server.http.delete(f"/v1/artifacts/{path}", headers=ADMIN)
        assert response.status_code == 404
    assert server.http.get(PATH).status_code == 200


def test_a_request_in_flight_keeps_what_it_resolved(replicas):
    server = replicas[0]
    with server.http.stream(
        "POST", "/v1/chat/completions", json=chat_body(stream=True, interventions=[ENTRY])
    ) as response:
        assert replicas[1].http.delete(PATH, headers=ADMIN).status_code == 200
        text = response.read().decode()
    assert '"status":"applied"' in text.replace(": ", ":")
    assert server.engine.requests[-1].plan is not None


def test_who_is_sent_the_bytes_gets_all_of_them(make_server: MakeServer, tmp_path: Path):
    server = make_server(admin_keys=("root",), artifacts=tmp_path)
    tensors = {"means": np.random.default_rng(0).normal(size=(4, 4, 2**18))}
    data = write_artifact("head_means", MODEL, tensors)
    (tmp_path / f"{name(data)}.safetensors").write_bytes(data)
    with server.http.stream("GET", f"/v1/artifacts/{name(data)}") as response:
        (tmp_path / f"{name(data)}.safetensors").unlink()
        assert response.read() == data


def test_a_prompt_counts_once_and_a_look_does_not(replicas):
    one, other = replicas
    assert (listed(one)["data"][0]["uses"], listed(one)["data"][0]["last_used"]) == (0, None)
    for server in replicas:
        server.http.get(PATH)
        body = {"interventions": [ENTRY]}
        assert server.http.post("/v1/interventions/validate", json=body).status_code == 200
        # Compiled, resolved for the receipt, and drawn twice: one prompt.
        assert server.chat(interventions=[ENTRY, ENTRY], n=2).status_code == 200
    other.app.state.services.artifacts._use.flush()
    card = listed(one)["data"][0]
    assert card["uses"] == 2
    assert abs(card["last_used"] - time.time()) < 10
    assert card["profile"] is None


def test_a_refused_entry_is_no_use_of_another(replicas):
    missing = {"method": "steering", "artifact": "sha256:" + "0" * 64}
    assert code(replicas[0].chat(interventions=[missing]), 404) == "artifact_not_found"
    assert not list(replicas[0].settings.artifacts.glob(".use-*"))


def test_the_room_is_shown(make_server: MakeServer, tmp_path: Path):
    server = make_server(
        admin_keys=("root",), artifacts=tmp_path, max_artifacts_bytes=5000, artifact_ttl=90.0
    )
    server.http.put(PATH, content=DATA, headers=ADMIN)
    (tmp_path / ".upload-x").write_bytes(bytes(100))
    found = listed(server)
    assert found["total_bytes"] == len(DATA) + 100
    assert (found["max_bytes"], found["ttl_seconds"]) == (5000, 90.0)


def test_what_a_profile_names_stays_until_the_profile_changes(make_server: MakeServer, tmp_path):
    (tmp_path / f"{NAME}.safetensors").write_bytes(DATA)
    profiles = {"calm": {"interventions": [ENTRY]}}
    server = make_server(admin_keys=("root",), artifacts=tmp_path, profiles=profiles)
    assert listed(server)["data"][0]["profile"] == "calm"
    refused = server.http.delete(PATH, headers=ADMIN)
    assert code(refused, 409) == "artifact_in_use"
    assert '"calm"' in refused.json()["error"]["message"]
    services = server.app.state.services
    assert services.artifacts.expire(0.0, services.profiles.artifacts()) == []

    def apply():
        services.profiles.replace({})
        return "none"

    work = reload([Reloadable(tmp_path, lambda: apply)])
    assert asyncio.run_coroutine_threadsafe(work, server.loop).result(10)
    assert server.http.delete(PATH, headers=ADMIN).status_code == 200


# --- expiry, by the store


def aged(folder: Path, digits: str, seconds: float, use: Use | None = None) -> None:
    path = folder / f"{digits}.safetensors"
    then = time.time() - seconds
    os.utime(path, (then, then))
    if use is not None:
        (folder / f".use-{digits}").write_bytes(use.line())


@pytest.fixture
def store(tmp_path: Path):
    store = ArtifactStore(tmp_path, 10**6)
    store.put(read_artifact(DATA), DATA)
    return store


def test_only_what_nothing_used_for_long_leaves(store: ArtifactStore, tmp_path: Path):
    now = time.time()
    made = [vector(value) for value in (2.0, 3.0, 4.0, 5.0)]
    for data in made:
        store.put(read_artifact(data), data)
    old, used, kept, named = map(name, made)
    aged(tmp_path, NAME, 50)
    aged(tmp_path, old, 200, Use(3, now - 150, 0))
    aged(tmp_path, used, 200, Use(3, now - 50, 0))
    aged(tmp_path, kept, 200, Use(3, now - 150, now - 50))
    aged(tmp_path, named, 200)
    assert store.expire(100, {f"sha256:{named}"}) == [f"sha256:{old}"]
    assert store.get(f"sha256:{old}") is None
    assert {item.about.digest for item in store.listing()} == {
        f"sha256:{digits}" for digits in (NAME, used, kept, named)
    }
    assert not (tmp_path / f".use-{old}").exists()
    # Another server that does not know the profile sees that one does, and that it is no use.
    other = ArtifactStore(tmp_path, 10**6)
    store._use.flush()
    assert other.expire(100, ()) == []
    assert other.about(f"sha256:{named}").use.count == 0
    assert other.about(f"sha256:{named}").use.last == 0
    assert store.expire(10**9, ()) == []


def test_a_use_or_an_upload_again_puts_it_off(store: ArtifactStore, tmp_path: Path):
    aged(tmp_path, NAME, 200)
    assert store.finder()(f"sha256:{NAME}") is not None
    assert ArtifactStore(tmp_path, 10**6).expire(100, ()) == []
    (tmp_path / f".use-{NAME}").unlink()
    again = ArtifactStore(tmp_path, 10**6)
    assert not again.put(read_artifact(DATA), DATA)
    assert store.expire(100, ()) == []
    (tmp_path / f".use-{NAME}").unlink()
    assert ArtifactStore(tmp_path, 10**6).expire(100, ()) == [f"sha256:{NAME}"]


def test_uses_that_are_not_yet_written_count_for_the_server_that_has_them(
    store: ArtifactStore, tmp_path: Path
):
    for _ in range(3):
        store.finder()(f"sha256:{NAME}")
    assert store.about(f"sha256:{NAME}").use.count == 3
    other = ArtifactStore(tmp_path, 10**6)
    assert other.about(f"sha256:{NAME}").use.count == 1  # the first of ten seconds
    store.close()
    assert other.about(f"sha256:{NAME}").use.count == 3


def test_while_another_server_writes_nothing_waits_and_nothing_expires(
    store: ArtifactStore, tmp_path: Path
):
    aged(tmp_path, NAME, 200)
    other = UseLog(tmp_path)
    with other.held(NAME) as handle:
        assert handle is not None
        begun = time.monotonic()
        assert store.expire(100, ()) == []
        assert store.finder()(f"sha256:{NAME}") is not None
        assert time.monotonic() - begun < 1
        assert other.of(NAME).count == 0
    store._use.flush()
    assert other.of(NAME).count == 1


def test_two_servers_expire_it_once_and_neither_fails(store: ArtifactStore, tmp_path: Path):
    aged(tmp_path, NAME, 200)
    stores = [ArtifactStore(tmp_path, 10**6) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda one: one.expire(100, ()), stores))
    assert sorted(map(len, found)) == [0, 0, 0, 1]


def test_put_get_and_delete_at_once_give_whole_artifacts_or_none(tmp_path: Path):
    stores = [ArtifactStore(tmp_path, 10**6) for _ in range(3)]
    artifact, until = read_artifact(DATA), time.monotonic() + 0.5
    wrong: list[object] = []

    def puts():
        while time.monotonic() < until:
            stores[0].put(artifact, DATA)

    def deletes():
        while time.monotonic() < until:
            stores[1].delete(artifact.digest)

    def gets():
        while time.monotonic() < until:
            found = stores[2].finder()(artifact.digest)
            if found is not None and found.tensors["vectors"].tolist() != [[1.0] * 32]:
                wrong.append(found)
            stores[2].listing()
            stores[2].expire(0.0, {artifact.digest})

    with ThreadPoolExecutor(3) as threads:
        for work in [threads.submit(work) for work in (puts, deletes, gets)]:
            work.result(20)
    assert not wrong
    stores[1].delete(artifact.digest)
    assert [path.suffix for path in tmp_path.iterdir() if path.name.startswith(".upload")] == []


NOTES = """
import sys
from pathlib import Path
from saccade_server.api import artifact_use
artifact_use.FLUSH_SECONDS = 0.0
log = artifact_use.UseLog(Path(sys.argv[1]))
sys.stdin.readline()
for _ in range(300):
    log.note("a" * 64)
log.close()
assert not log._pending
"""


def test_processes_lose_no_use_of_each_other(tmp_path: Path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", NOTES, str(tmp_path)],
            stdin=subprocess.PIPE,
            env=environment(),
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    assert UseLog(tmp_path).of("a" * 64).count == 900


@pytest.mark.parametrize("content", [b"", b"junk", b"1" * 10**6, b"-0000000000000000001 0.0 0.0\n"])
def test_a_line_that_is_none_says_nothing(tmp_path: Path, content):
    (tmp_path / (".use-" + "a" * 64)).write_bytes(content)
    log = UseLog(tmp_path)
    assert log.of("a" * 64) == Use()
    log.note("a" * 64)
    assert log.of("a" * 64).count == 1


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "read-only"])
def test_a_name_that_is_no_file_fails_no_request(
    store: ArtifactStore, tmp_path: Path, kind, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / f".use-{NAME}"
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(elsewhere)
        case "folder":
            path.mkdir()
        case "read-only":
            if os.geteuid() == 0:
                pytest.skip("root writes anywhere")
            path.write_bytes(b"")
            path.chmod(0o400)
    for _ in range(3):
        assert store.finder()(f"sha256:{NAME}") is not None
    assert store.about(f"sha256:{NAME}").use.count == 3  # of this server
    store.close()
    assert len([r for r in caplog.records if "cannot be noted" in r.getMessage()]) == 1
    assert not elsewhere.exists()
    aged(tmp_path, NAME, 200)
    assert store.expire(100, ()) == []  # it was used now


def test_lines_of_artifacts_that_are_gone_go_later(store: ArtifactStore, tmp_path: Path):
    stray, fresh = tmp_path / (".use-" + "b" * 64), tmp_path / (".use-" + "c" * 64)
    for path in (stray, fresh):
        path.write_bytes(Use(1, time.time(), 0).line())
    then = time.time() - 2 * artifact_use.ABANDONED_SECONDS
    os.utime(stray, (then, then))
    ArtifactStore(tmp_path, 10**6)
    assert not stray.exists()
    assert fresh.exists()


def test_a_server_looks_after_them_by_itself(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    monkeypatch.setattr(artifact_expiry, "LONGEST_PAUSE", 0.02)
    path = tmp_path / f"{NAME}.safetensors"
    path.write_bytes(DATA)
    aged(tmp_path, NAME, 200)
    with caplog.at_level("INFO", "saccade.artifacts"):
        server = make_server(artifacts=tmp_path, artifact_ttl=100.0)
        wait_for(lambda: not path.exists())
        wait_for(lambda: f"sha256:{NAME} was deleted: unused for 100 s" in caplog.text)
    assert listed(server)["data"] == []
    assert threading.active_count() < 100
