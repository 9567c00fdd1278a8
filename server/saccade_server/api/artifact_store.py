"""The artifacts that requests may name: a folder of files, the ones used last also in memory.

Replicas share the folder and know nothing of each other but its files. An artifact that one of them
deletes is gone for all, for requests that come: the folder is asked each time. A request that has
resolved it keeps what it has.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from saccade_interventions.artifacts import Artifact, ArtifactError, read_artifact
from saccade_server.api.artifact_use import Use, UseLog
from saccade_server.api.digest_folder import DigestFolder
from saccade_server.api.errors import Unavailable

logger = logging.getLogger("saccade.artifacts")

PREFIX = "sha256:"
CACHED_BYTES = 256 * 2**20


class StoreFullError(Exception):
    """The folder has no room for one more artifact."""


@dataclass(frozen=True)
class Stored:
    """What is known of an artifact without keeping it."""

    digest: str
    kind: str
    model: str
    notes: str
    defaults: Mapping[str, Any]
    bytes: int


@dataclass(frozen=True)
class Listed:
    """An artifact with what its file and its use say; times are seconds since the epoch."""

    about: Stored
    created: float
    use: Use


class ArtifactStore:
    """Artifacts on disk, the ones used last also in memory. May be used from any thread.

    Args:
        folder: made if it is not there; None: a private one, gone when the store is closed.
        max_bytes: of all artifacts together, unfinished uploads included.
        cached_bytes: of the tensors kept in memory.

    Raises:
        OSError: the folder cannot be made or written to.
    """

    def __init__(
        self, folder: Path | None, max_bytes: int, cached_bytes: int = CACHED_BYTES
    ) -> None:
        self._files = DigestFolder(folder, "artifact")
        self._max_bytes = max_bytes
        self._cached_bytes = cached_bytes
        self._cache: OrderedDict[str, Artifact] = OrderedDict()
        self._known: dict[str, Stored] = {}
        self._lock = threading.Lock()
        self._puts = threading.Lock()
        self._use = UseLog(self._files.folder)
        with suppress(Unavailable):
            self._use.drop_strays(self._there())

    def close(self) -> None:
        """Write down what was used, and drop the private folder."""
        self._use.close()
        self._files.close()

    def identity(self) -> str:
        """A name that all who share the folder find.

        Raises:
            OSError: the folder cannot be read or written.
        """
        return self._files.identity()

    @property
    def max_bytes(self) -> int:
        """What all artifacts may have together."""
        return self._max_bytes

    def put(self, artifact: Artifact, data: bytes) -> bool:
        """Keep an artifact that was read from ``data``. False if it was there already.

        A file of its name with other bytes, which something outside damaged, is replaced.

        Raises:
            StoreFullError: there is no room for it.
            Unavailable: the folder cannot be read now.
            OSError: it could not be written.
        """
        digest = _digits(artifact.digest)
        with self._puts:  # two must not both take the last room; readers need not wait for the disk
            there = self._files.open(digest)
            if there is not None:
                there.close()
                self._use.keep(digest)
                return False
            entries = self._files.entries()
            others = sum(entry.bytes for entry in entries if entry.digest != digest)
            if len(data) + others > self._max_bytes:
                raise StoreFullError
            self._files.write(digest, [data])
        self._remember(artifact, len(data))
        return True

    def open(self, digest: str) -> BufferedReader | None:
        """The file of an artifact; None if there is none of this digest with its bytes.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        return self._files.open(_digits(digest))

    def get(self, digest: str) -> Artifact | None:
        """The artifact of this digest, ``sha256:`` and 64 hexadecimal digits, if it is there.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        there = self._files.has(_digits(digest))
        with self._lock:
            if not there:  # whoever takes the file away takes the artifact away
                self._cache.pop(digest, None)
                return None
            if digest in self._cache:
                self._cache.move_to_end(digest)
                return self._cache[digest]
        return self._load(digest)

    def finder(self) -> Callable[[str], Artifact | None]:
        """``get`` for one prompt: what it found it keeps, and it counts as one use of that.

        What it returns raises Unavailable: the folder cannot be read now.
        """
        found: dict[str, Artifact] = {}

        def find(digest: str) -> Artifact | None:
            if digest not in found:
                artifact = self.get(digest)
                if artifact is None:
                    return None
                found[digest] = artifact
                self._use.note(_digits(digest))
            return found[digest]

        return find

    def delete(self, digest: str) -> bool:
        """Delete an artifact, for all servers of the folder. False if it is not there.

        Raises:
            Unavailable: the folder cannot be written to now.
        """
        digits = _digits(digest)
        if self._files.path(digits) is None:
            return False
        with self._puts:
            removed = self._files.remove(digits)
            self._use.forget(digits)
        with self._lock:
            self._cache.pop(digest, None)
        return removed

    def expire(self, seconds: float, kept: Collection[str]) -> list[str]:
        """Delete what nothing has used, uploaded or named for so long. Returns their digests.

        ``kept`` stay, and other servers that know no reason for that are told to keep them.
        A use that is noted at the same time wins, or finds the artifact gone.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        self._use.flush()
        expired = []
        there = self._there()
        for digits in sorted(there):
            if PREFIX + digits in kept:
                self._use.keep(digits)
            elif self._is_idle(digits, seconds) and self._expired(digits, seconds):
                expired.append(PREFIX + digits)
        self._use.drop_strays(there)
        return expired

    def listing(self) -> list[Listed]:
        """What is in the folder, by digest; files that are no artifacts are left out.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        found = []
        for digest in sorted(PREFIX + e.digest for e in self._files.entries() if e.digest):
            with suppress(Unavailable):  # of this one file, and logged
                if (listed := self.about(digest)) is not None:
                    found.append(listed)
        return found

    def about(self, digest: str) -> Listed | None:
        """What is known of one artifact, if it is there.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        if digest not in self._known:
            self.get(digest)
        created = self._created(_digits(digest))
        if digest not in self._known or created is None:
            return None
        return Listed(self._known[digest], created, self._use.of(_digits(digest)))

    def used_bytes(self) -> int:
        """Of all artifacts together, unfinished uploads included.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        return sum(entry.bytes for entry in self._files.entries())

    def _there(self) -> frozenset[str]:
        return frozenset(entry.digest for entry in self._files.entries() if entry.digest)

    def _is_idle(self, digits: str, seconds: float) -> bool:
        created = self._created(digits)
        heard = max(created or 0.0, self._use.of(digits).heard)
        return created is not None and time.time() - heard > seconds

    def _expired(self, digits: str, seconds: float) -> bool:
        """Delete one, if it is still idle when nobody can add to its use."""
        try:
            with self._use.held(digits) as handle:
                idle = handle is not None and self._is_idle(digits, seconds)
                return idle and self.delete(PREFIX + digits)
        except OSError as error:
            logger.warning("artifact %s cannot be looked after: %s", digits, error)
            return False

    def _created(self, digits: str) -> float | None:
        path = self._files.path(digits)
        try:
            return None if path is None else path.stat().st_mtime
        except OSError:
            return None

    def _load(self, digest: str) -> Artifact | None:
        file = self.open(digest)
        if file is None:
            return None
        try:
            with file:
                data = file.read(self._max_bytes)
            artifact = read_artifact(data)
        except ArtifactError as error:
            logger.error("artifact %s is not readable: %s", digest, error)
            return None
        except OSError as error:
            raise self._files.failed(error) from None
        if artifact.digest != digest:
            logger.error("artifact %s was changed while it was read", digest)
            return None
        self._remember(artifact, len(data))
        return artifact

    def _remember(self, artifact: Artifact, size: int) -> None:
        about = (artifact.kind, artifact.model, artifact.notes, artifact.defaults)
        known = Stored(artifact.digest, *about, size)
        with self._lock:
            self._known[artifact.digest] = known
            self._cache[artifact.digest] = artifact
            self._cache.move_to_end(artifact.digest)
            while len(self._cache) > 1 and self._in_memory() > self._cached_bytes:
                self._cache.popitem(last=False)

    def _in_memory(self) -> int:
        return sum(
            array.nbytes for artifact in self._cache.values() for array in artifact.tensors.values()
        )


def _digits(digest: str) -> str:
    return digest.removeprefix(PREFIX)
