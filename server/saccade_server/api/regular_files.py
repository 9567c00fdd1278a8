"""Files in a folder that others may write to: only regular ones are opened, and never waited for.

A name may turn out to be a link that leads nowhere or in a circle, a folder, a pipe that would
block its reader, a device, or gone by the time it is opened. All of these are no file. What is
written appears complete or not at all.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

NO_FILE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.EACCES,
        errno.EPERM,
    }
)
"""What says that there is nothing to read under a name, now or when asked again."""


def regular_size(path: str | Path) -> int | None:
    """Bytes of a regular file, links followed; None if there is none.

    Raises:
        OSError: the folder cannot be asked now.
    """
    try:
        facts = os.stat(path)
    except OSError as error:
        if error.errno in NO_FILE:
            return None
        raise
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


def open_regular(path: Path) -> BufferedReader | None:
    """A regular file, open for reading; None if there is none that may be read.

    Raises:
        OSError: it cannot be opened now, for instance because too many files are.
    """
    if regular_size(path) is None:  # opening a device may already do something to it
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in NO_FILE:
            return None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return None
    return os.fdopen(handle, "rb")


def write_whole(path: Path, data: Iterable[bytes | memoryview], prefix: str) -> None:
    """Write a file: a reader, or a server that starts after a crash, sees the whole of it or none.

    Args:
        data: its bytes, in pieces.
        prefix: of the name that the file has in the same folder until it is complete.

    Raises:
        OSError: it could not be written; nothing is left of it.
    """
    handle, name = tempfile.mkstemp(prefix=prefix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in data:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o640)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
