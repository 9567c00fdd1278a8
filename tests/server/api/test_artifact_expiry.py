"""How artifacts that nothing uses leave, and what servers of one folder write of their use."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from saccade_interventions.artifacts import read_artifact
from saccade_server.api import artifact_expiry, artifact_use
from saccade_server.api.artifact_store import ArtifactStore
from saccade_server.api.artifact_use import Use, UseLog
from saccade_testing.api.artifacts import DATA, NAME, name, vector
from saccade_testing.api.server import MakeServer, wait_for
from saccade_testing.launch import environment


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


def test_a_use_at_the_last_moment_keeps_it(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    aged(tmp_path, NAME, 200)
    other, held = UseLog(tmp_path), store._use.held
    monkeypatch.setattr(store._use, "held", lambda digits: other.note(digits) or held(digits))
    assert store.expire(100, ()) == []


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
    assert server.http.get("/v1/artifacts").json()["data"] == []
    assert threading.active_count() < 100
