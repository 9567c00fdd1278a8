"""Private folders: a killed process's is removed by the next one, and nothing else ever."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade_server.engine.folder import LOCK, PrivateFolder, remove_abandoned

OWNER = """
import sys, time
from saccade_server.engine.folder import PrivateFolder
folder = PrivateFolder("engine")
(folder.path / "sock").write_text("x")
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this test and of what it starts."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def owner(temporary: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


def test_it_is_private_and_gone_when_it_is_closed(temporary: Path) -> None:
    folder = PrivateFolder("engine")
    assert folder.path.parent == temporary
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "inner").mkdir()
    folder.close()
    folder.close()
    assert list(temporary.iterdir()) == []


def test_it_goes_with_its_holder(temporary: Path) -> None:
    path = PrivateFolder("engine").path
    assert not path.exists()


def test_a_living_processs_folder_stays_and_a_killed_ones_goes(
    temporary: Path, owner: subprocess.Popen[str]
) -> None:
    assert owner.stdout is not None
    path = Path(owner.stdout.readline().strip())
    own = PrivateFolder("artifacts")
    assert (path / "sock").exists()
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert path.exists()
    other = PrivateFolder("engine")
    assert not path.exists()
    assert own.path.exists()
    other.close()
    own.close()


def test_only_folders_of_ours_with_a_lock_are_removed(temporary: Path) -> None:
    """No links are followed, and what merely has such a name is left alone."""
    elsewhere = temporary / "precious"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    (temporary / "saccade-link").symlink_to(elsewhere)
    bare = temporary / "saccade-notes"
    bare.mkdir()
    (bare / "notes.txt").touch()
    linked = temporary / "saccade-linked-lock"
    linked.mkdir()
    (linked / LOCK).symlink_to(elsewhere / LOCK)
    pipe = temporary / "saccade-pipe"
    pipe.mkdir()
    os.mkfifo(pipe / LOCK)
    (temporary / "saccade-file").touch()
    abandoned = temporary / "saccade-abandoned"
    abandoned.mkdir()
    (abandoned / LOCK).touch()
    (abandoned / "way-out").symlink_to(elsewhere)
    before = set(temporary.iterdir())
    remove_abandoned(temporary)
    assert before - set(temporary.iterdir()) == {abandoned}
    assert (elsewhere / LOCK).exists()


def test_another_users_folder_is_left_alone(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = temporary / "saccade-theirs"
    theirs.mkdir()
    (theirs / LOCK).touch()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    remove_abandoned(temporary)
    assert theirs.exists()


def test_a_temporary_folder_that_is_not_there_is_no_reason_to_fail() -> None:
    remove_abandoned(Path("/no/such/folder"))
