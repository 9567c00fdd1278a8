"""The folder of artifacts while others write to it: nothing in it stops the server."""

import errno
import hashlib
import os
import shutil
import socket
import stat
from pathlib import Path

import numpy as np
import pytest

from saccade_interventions.artifacts import read_artifact, write_artifact
from saccade_server.api import digest_folder
from saccade_server.api.artifact_store import ArtifactStore
from saccade_server.api.errors import Unavailable
from saccade_testing.api.server import MakeServer

DATA = write_artifact("heads", "sha256:" + "ab" * 32, {"heads": np.asarray([(0, 1)], np.int32)}, "")
NAME = hashlib.sha256(DATA).hexdigest()
OTHER = "0" * 64
ARTIFACT = read_artifact(DATA)


def loop(path):
    path.symlink_to(path.name)


def two_links(path):
    other = path.with_name("other")
    path.symlink_to(other)
    other.symlink_to(path)


def device(path):
    path.symlink_to("/dev/zero")


def unix_socket(path):
    # a socket's name has at most 107 bytes
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/s")
    os.close(folder)
    path.with_name("s").rename(path)


HOSTILE = {
    "loop": loop,
    "two links": two_links,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "through a file": lambda path: path.symlink_to("/etc/passwd/x"),
    "too long": lambda path: path.symlink_to("x" * 300),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "link to a device": device,
    "socket": unix_socket,
}


@pytest.fixture
def folder(tmp_path: Path):
    return tmp_path / "store"


@pytest.fixture
def store(folder):
    return ArtifactStore(folder, 10**6)


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_file_is_no_artifact(store, folder, kind):
    for name in (OTHER + ".safetensors", ".upload-x"):
        HOSTILE[kind](folder / name)
        if (folder / "other").is_symlink():
            (folder / "other").unlink()
    assert store.listing() == []
    assert store.get("sha256:" + OTHER) is None
    assert store.open("sha256:" + OTHER) is None
    assert store.put(ARTIFACT, DATA)
    assert [item.about.digest for item in store.listing()] == ["sha256:" + NAME]
    ArtifactStore(folder, 10**6).close()  # a start beside them


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind != "folder"])
def test_a_put_takes_the_place_of_what_is_no_file(store, folder, kind):
    HOSTILE[kind](folder / f"{NAME}.safetensors")
    assert store.get("sha256:" + NAME) is None
    assert store.put(ARTIFACT, DATA)
    with store.open("sha256:" + NAME) as file:
        assert file.read() == DATA


def test_a_link_to_a_file_is_followed(store, folder, tmp_path: Path):
    (tmp_path / "elsewhere").write_bytes(DATA)
    (folder / f"{NAME}.safetensors").symlink_to(tmp_path / "elsewhere")
    assert [item.about.digest for item in store.listing()] == ["sha256:" + NAME]


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_that_is_taken_away_is_made_again(folder, private):
    store = ArtifactStore(None if private else folder, 10**6)
    assert store.put(ARTIFACT, DATA)
    shutil.rmtree(store._files.folder)
    assert store.listing() == []
    assert store.get(ARTIFACT.digest) is None
    assert store.put(ARTIFACT, DATA)
    assert store.get(ARTIFACT.digest) == ARTIFACT
    if private:
        assert stat.S_IMODE(store._files.folder.stat().st_mode) == 0o700
    store.close()


def test_a_folder_that_became_a_file(store, folder):
    folder.rmdir()
    folder.write_text("x")
    assert store.get(ARTIFACT.digest) is None
    with pytest.raises(Unavailable):
        store.listing()
    with pytest.raises(Unavailable):
        store.put(ARTIFACT, DATA)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE])
def test_what_cannot_be_read_now_is_not_called_absent(
    store, monkeypatch: pytest.MonkeyPatch, number
):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    store.put(ARTIFACT, DATA)
    monkeypatch.setattr(digest_folder, "open_regular", fail)
    assert store.get(ARTIFACT.digest) == ARTIFACT  # from memory
    with pytest.raises(Unavailable):
        store.open(ARTIFACT.digest)
    store._cache.clear()
    with pytest.raises(Unavailable):
        store.get(ARTIFACT.digest)
    monkeypatch.undo()
    assert store.get(ARTIFACT.digest) == ARTIFACT


def test_a_file_that_may_not_be_read_is_none(store, folder, monkeypatch: pytest.MonkeyPatch):
    honest = os.open

    def refuse(path, *arguments, **more):
        if str(path).endswith(".safetensors"):  # root may read everything
            raise PermissionError(errno.EACCES, "no")
        return honest(path, *arguments, **more)

    (folder / f"{NAME}.safetensors").write_bytes(DATA)
    monkeypatch.setattr(os, "open", refuse)
    assert store.listing() == []
    assert store.open(ARTIFACT.digest) is None


def test_the_server_lives_on(make_server: MakeServer, folder):
    server = make_server(admin_keys=("root",), artifacts=folder)
    for number, make in enumerate(HOSTILE.values()):
        make(folder / f"{number:064x}.safetensors")
        if (folder / "other").is_symlink():
            (folder / "other").unlink()
    assert server.http.get("/v1/artifacts").json()["data"] == []
    for number in range(len(HOSTILE)):
        assert server.http.get(f"/v1/artifacts/{number:064x}").status_code == 404
    admin = {"authorization": "Bearer root"}
    # A folder in the place of the file cannot be put right.
    (folder / f"{NAME}.safetensors").mkdir()
    refused = server.http.put(f"/v1/artifacts/{NAME}", content=DATA, headers=admin)
    assert refused.json()["error"]["code"] == "artifact_store_failed", refused.text
    (folder / f"{NAME}.safetensors").rmdir()
    shutil.rmtree(folder)
    assert server.http.get("/v1/artifacts").json()["data"] == []
    assert server.http.put(f"/v1/artifacts/{NAME}", content=DATA, headers=admin).status_code == 201
    assert server.http.get(f"/v1/artifacts/{NAME}").content == DATA
