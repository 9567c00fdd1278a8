"""The artifacts that requests may name: a folder of files, the ones used last also in memory."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from saccade_interventions.artifacts import Artifact, ArtifactError, read_artifact
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

    def close(self) -> None:
        """Drop the private folder."""
        self._files.close()

    def identity(self) -> str:
        """A name that all who share the folder find.

        Raises:
            OSError: the folder cannot be read or written.
        """
        return self._files.identity()

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

    def listing(self) -> list[Stored]:
        """What is in the folder, by digest; files that are no artifacts are left out.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        found = []
        for digest in sorted(PREFIX + e.digest for e in self._files.entries() if e.digest):
            if digest not in self._known:
                with suppress(Unavailable):  # of this one file, and logged
                    self.get(digest)
            if digest in self._known:
                found.append(self._known[digest])
        return found

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
