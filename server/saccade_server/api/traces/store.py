"""A folder of traces behind links, bounded: the oldest leave."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from saccade_server.api.digest_folder import DigestFolder, Entry
from saccade_server.api.traces.files import TraceFile

logger = logging.getLogger("saccade.traces")


class TraceStore:
    """Files of traces. May be used from any thread, and the folder by several servers.

    Args:
        folder: made if it is not there; None: a private one, gone when the store is closed.
        max_bytes: of all files together, unfinished ones included. One that is larger than that
            alone is not kept.

    Raises:
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self._files = DigestFolder(folder, "trace")
        self._max_bytes = max_bytes
        self._puts = threading.Lock()

    def close(self) -> None:
        """Drop the private folder."""
        self._files.close()

    def put(self, file: TraceFile) -> None:
        """Keep a file; what was put longest ago leaves for it.

        Raises:
            OSError: it could not be written, or is too large.
            Unavailable: the folder cannot be read now.
        """
        if file.bytes > self._max_bytes:
            raise OSError(f"a trace of {file.bytes} bytes is larger than the folder may be")
        with self._puts:
            self._make_room(file)
            self._files.write(file.digest, file.pieces)  # again, if it is there: now it is new

    def open(self, digest: str) -> BufferedReader | None:
        """The file of a digest, 64 hexadecimal digits; None if there is none with its bytes.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        return self._files.open(digest)

    def _make_room(self, file: TraceFile) -> None:
        entries = [entry for entry in self._files.entries() if entry.digest != file.digest]
        left = self._max_bytes - file.bytes - sum(entry.bytes for entry in entries)
        complete = [entry for entry in entries if entry.digest is not None]
        for entry in sorted(complete, key=_age):
            if left >= 0:
                return
            with suppress(FileNotFoundError):  # another server was first
                os.unlink(entry.path)
            left += entry.bytes


def _age(entry: Entry) -> float:
    try:
        return entry.path.stat().st_mtime
    except OSError:  # it is gone
        return 0.0
