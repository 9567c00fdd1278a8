"""How often artifacts were used and when last, for all servers of a folder and without a database.

Beside an artifact that was used lies one line of fixed width, ``.use-<digest>``: a count, the time
of the last use, and a time until when something else spoke for it (an upload of what was there, a
profile that names it). Servers add to it under a lock on that file. Access times would say less:
mounts leave them out, and a backup or a list of the folder counts as well.

A use is noted in memory and written at most every :data:`FLUSH_SECONDS`, never waiting for a lock
that another server holds, so what is written is late by that much, and a server that is killed
loses what it had not written. Of a folder that takes no such file nothing is known.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

logger = logging.getLogger("saccade.artifacts")

PREFIX = ".use-"
FLUSH_SECONDS = 10.0
ABANDONED_SECONDS = 3600.0
TRIES, PAUSE_SECONDS = 20, 0.005
MOST_BYTES = 200
"""Of a line, and some more: of what is longer nothing is known."""
LINE = re.compile(rb"(\d{20}) (\d{16}\.\d{3}) (\d{16}\.\d{3})\n")


@dataclass(frozen=True)
class Use:
    """Times are seconds since the epoch, 0 for never."""

    count: int = 0
    last: float = 0.0
    kept: float = 0.0

    def line(self) -> bytes:
        """What the file holds: always as long, so one write replaces it."""
        return b"%020d %020.3f %020.3f\n" % (self.count, self.last, self.kept)

    @classmethod
    def read(cls, data: bytes) -> Use:
        """Of such a line; of anything else nothing is known."""
        found = LINE.fullmatch(data)
        return cls(int(found[1]), float(found[2]), float(found[3])) if found else cls()

    @property
    def heard(self) -> float:
        """When something last spoke for the artifact."""
        return max(self.last, self.kept)


class UseLog:
    """The lines of a folder. May be used from any thread; never fails for what it cannot write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: dict[str, Use] = {}
        self._written: dict[str, float] = {}
        self._lock = threading.Lock()
        self._warned = False

    def note(self, digits: str) -> None:
        """An artifact was used; ``digits`` are the 64 of its digest."""
        now = time.time()
        self._add(digits, Use(1, now, 0.0), now)

    def keep(self, digits: str) -> None:
        """Something speaks for an artifact without using it."""
        now = time.time()
        self._add(digits, Use(0, 0.0, now), now)

    def of(self, digits: str) -> Use:
        """All that is known of an artifact, what is not yet written included."""
        with self._lock:
            pending = self._pending.get(digits, Use())
        found = Use()
        with suppress(OSError):
            handle = _opened(self._path(digits), os.O_RDONLY)
            with os.fdopen(handle, "rb") as file:
                found = Use.read(file.read(MOST_BYTES))
        return _sum(found, pending)

    def flush(self) -> None:
        """Write what is not yet written, as far as no other server is writing the same."""
        for digits in tuple(self._pending):
            self._flush(digits)

    def close(self) -> None:
        """Write what is not yet written; somebody who is writing now is waited for a moment."""
        for _ in range(TRIES):
            self.flush()
            if not self._pending:
                return
            time.sleep(PAUSE_SECONDS)

    @contextmanager
    def held(self, digits: str) -> Iterator[int | None]:
        """The open file of an artifact, which nobody adds to meanwhile; None: somebody does now.

        Raises:
            OSError: the file cannot be opened.
        """
        path = self._path(digits)
        handle = _opened(path, os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                same = os.path.samestat(os.fstat(handle), os.lstat(path))
            except (BlockingIOError, FileNotFoundError):
                same = False
            yield handle if same else None
        finally:
            os.close(handle)

    def forget(self, digits: str) -> None:
        """The artifact is gone."""
        with self._lock:
            self._pending.pop(digits, None)
            self._written.pop(digits, None)
        with suppress(OSError):
            self._path(digits).unlink()

    def drop_strays(self, there: frozenset[str]) -> None:
        """Delete the lines of artifacts that are gone, a while after the last word."""
        for path in self._folder.glob(PREFIX + "*"):
            with suppress(OSError):
                old = time.time() - path.lstat().st_mtime > ABANDONED_SECONDS
                if old and path.name.removeprefix(PREFIX) not in there:
                    path.unlink()

    def _add(self, digits: str, more: Use, now: float) -> None:
        with self._lock:
            self._pending[digits] = _sum(self._pending.get(digits, Use()), more)
            due = now - self._written.get(digits, 0.0) >= FLUSH_SECONDS
            if due:
                self._written[digits] = now
        if due:
            self._flush(digits)

    def _flush(self, digits: str) -> None:
        with self._lock:
            pending = self._pending.pop(digits, None)
        if pending is None:
            return
        try:
            with self.held(digits) as handle:
                if handle is not None:
                    found = Use.read(os.pread(handle, MOST_BYTES, 0))
                    os.ftruncate(handle, os.pwrite(handle, _sum(found, pending).line(), 0))
                    return
        except OSError as error:
            if not self._warned:
                self._warned = True
                logger.warning("which artifacts are used cannot be noted: %s", error)
        with self._lock:  # later
            self._pending[digits] = _sum(self._pending.get(digits, Use()), pending)

    def _path(self, digits: str) -> Path:
        return self._folder / (PREFIX + digits)


def _sum(one: Use, other: Use) -> Use:
    both = replace(one, count=one.count + other.count)
    return replace(both, last=max(one.last, other.last), kept=max(one.kept, other.kept))


def _opened(path: Path, flags: int) -> int:
    """A regular file and nothing else, links not followed.

    Raises:
        OSError: it is none, or cannot be opened.
    """
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o660)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path.name} is no regular file")
    return handle
