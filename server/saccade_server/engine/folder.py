"""Private folders in the temporary folder, and what dead processes have left of them.

A folder holds a file that the folder's process keeps locked. The kernel drops the lock when the
process ends, however it ends: a folder whose lock can be had has lost its process. Process ids are
not asked, because they are reused and mean nothing in another container.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

PREFIX = "saccade-"
LOCK = "lock"


class PrivateFolder:
    """A folder that only this user can reach, gone when it is closed or the process ends.

    Making a folder also removes this user's folders whose processes were killed.

    Raises:
        OSError: there is no temporary folder that can be written to.
    """

    def __init__(self, kind: str) -> None:
        root = Path(tempfile.gettempdir())
        remove_abandoned(root)
        # Nobody may see it without its lock: it gets the name that others look for when it has one.
        made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}{kind}-", dir=root))
        try:
            lock = os.open(made / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            with suppress(OSError):  # no locks on this file system: it is not removed by others
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path = made.rename(root / made.name.removeprefix("."))
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        self._cleanup = weakref.finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """Remove it and all that is in it."""
        self._cleanup()


def remove_abandoned(root: Path) -> None:
    """Remove this user's private folders in ``root`` that no process holds any more."""
    with suppress(OSError), os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(PREFIX)]
        for name in names:
            with suppress(OSError):
                _remove_if_abandoned(root / name)


def _remove_if_abandoned(path: Path) -> None:
    """Everything is asked of open files: a name may be given to something else in between."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        lock = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        try:
            ours = all(os.fstat(each).st_uid == os.geteuid() for each in (folder, lock))
            if not ours or not stat.S_ISREG(os.fstat(lock).st_mode):
                return
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused: somebody holds it
            shutil.rmtree(".", ignore_errors=True, dir_fd=folder)
            path.rmdir()
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
