"""A folder of safetensors files, each named by the SHA-256 of its bytes.

Names are hexadecimal digests and nothing else, files appear complete or not at all, and what is
read is checked again, so replicas may share a folder and may put the same file at once. What else
lies in the folder, whatever it is, is left alone; a folder that was taken away is made again by
the next put.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from saccade_server.api.errors import Unavailable
from saccade_server.api.folder_identity import folder_identity
from saccade_server.api.regular_files import open_regular, regular_size, write_whole
from saccade_server.engine.folder import PrivateFolder

HEX = re.compile(r"[0-9a-f]{64}")
SUFFIX = ".safetensors"
UPLOAD = ".upload-"
OURS = re.compile(rf"{re.escape(UPLOAD)}.*|{HEX.pattern}{re.escape(SUFFIX)}", re.DOTALL)
ABANDONED_SECONDS = 3600
"""After which an unfinished file is what a crash left, and not another server's at work."""


class Entry(NamedTuple):
    """A file of ours: complete, with the digest that it is named for, or unfinished."""

    path: Path
    digest: str | None
    bytes: int


class DigestFolder:
    """The files and what they are called. May be used from any thread.

    Args:
        folder: made if it is not there; None: a private one, gone when it is closed.
        kind: what one of its files is, for messages.

    Raises:
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path | None, kind: str) -> None:
        self._own: PrivateFolder | None = None
        if folder is None:
            self._own = PrivateFolder(f"{kind}s")
            folder = self._own.path
        _try_out(folder, kind)
        self.folder = folder
        self._kind = kind
        self._identity: str | None = None
        self._log = logging.getLogger(f"saccade.{kind}s")
        self._intact: dict[str, tuple[int, ...]] = {}
        self._drop_abandoned()

    def close(self) -> None:
        """Drop the private folder."""
        if self._own is not None:
            self._own.close()

    def identity(self) -> str:
        """A name that all who share the folder find, see :mod:`folder_identity`; read once.

        Raises:
            OSError: the folder cannot be read or written.
        """
        if self._identity is None:
            self._identity = folder_identity(self.folder)
        return self._identity

    def path(self, digest: str) -> Path | None:
        """The file named for a digest, whether it is there or not; None for what is no digest."""
        return self.folder / (digest + SUFFIX) if HEX.fullmatch(digest) else None

    def has(self, digest: str) -> bool:
        """Whether there is a file of this digest, whatever is in it.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        path = self.path(digest)
        try:
            return path is not None and regular_size(path) is not None
        except OSError as error:
            raise self.failed(error) from None

    def open(self, digest: str) -> BufferedReader | None:
        """The file of a digest; None if there is none with its bytes.

        A file is read and hashed the first time, and again when it changes.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        path = self.path(digest)
        if path is None:
            return None
        file: BufferedReader | None = None
        try:
            file = open_regular(path)
            if file is None or self._is_intact(file, digest):
                return file
            file.close()
        except OSError as error:
            if file is not None:
                file.close()
            raise self.failed(error) from None
        self._log.error("the bytes of %s are not those it is named for", path.name)
        return None

    def entries(self) -> list[Entry]:
        """Every file of ours, unfinished ones included.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        try:
            return list(self._entries())
        except FileNotFoundError:  # the folder was taken away
            return []
        except OSError as error:
            raise self.failed(error) from None

    def write(self, digest: str, data: Iterable[bytes | memoryview]) -> None:
        """Write a file of these bytes, which have this digest.

        Raises:
            OSError: it could not be written.
        """
        path = self.path(digest)
        assert path is not None
        self.folder.mkdir(0o777 if self._own is None else 0o700, parents=True, exist_ok=True)
        write_whole(path, data, UPLOAD)

    def remove(self, digest: str) -> bool:
        """Delete the file of a digest; whoever has it open keeps it. False if there is none.

        Raises:
            Unavailable: the folder cannot be written to now.
        """
        path = self.path(digest)
        try:
            if path is None or regular_size(path) is None:
                return False
            path.unlink()
        except FileNotFoundError:  # another server was first
            return False
        except OSError as error:
            raise self.failed(error) from None
        return True

    def failed(self, error: OSError) -> Unavailable:
        """What clients see of a folder that cannot be read; the log has more."""
        self._log.error("the folder of %ss cannot be read: %s", self._kind, error)
        message = f"The {self._kind}s cannot be read now."
        return Unavailable(message, code=f"{self._kind}_store_failed", retry_after=30)

    def _is_intact(self, file: BufferedReader, digest: str) -> bool:
        facts = os.fstat(file.fileno())
        seen = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if self._intact.get(digest) != seen:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return False
            file.seek(0)
            self._intact[digest] = seen
        return True

    def _entries(self) -> Iterator[Entry]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                size = regular_size(entry.path) if OURS.fullmatch(entry.name) else None
                if size is not None:
                    complete = not entry.name.startswith(UPLOAD)
                    digest = entry.name.removesuffix(SUFFIX) if complete else None
                    yield Entry(Path(entry.path), digest, size)

    def _drop_abandoned(self) -> None:
        """Delete what servers that crashed while they wrote have left."""
        for path in self.folder.glob(UPLOAD + "*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()


def _try_out(folder: Path, kind: str) -> None:
    """Make the folder, read it, write to it: what permissions say is not all there is to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.listdir(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        message = f"the folder of {kind}s {folder} cannot be used: {error.strerror}"
        raise OSError(message) from error
