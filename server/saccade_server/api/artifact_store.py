"""A folder of artifacts, each named by the SHA-256 of its bytes.

Names are hexadecimal digests and nothing else, files appear complete or not at all, and what is
read is checked again, so replicas may share a folder and may put the same artifact at once. What
else lies in the folder, whatever it is, is left alone; a folder that was taken away is made again
by the next put.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from saccade_interventions.artifacts import Artifact, ArtifactError, read_artifact
from saccade_server.api.errors import Unavailable
from saccade_server.api.regular_files import open_regular, regular_size, write_whole
from saccade_server.engine.folder import PrivateFolder

logger = logging.getLogger("saccade.artifacts")

HEX = re.compile(r"[0-9a-f]{64}")
PREFIX = "sha256:"
SUFFIX = ".safetensors"
UPLOAD = ".upload-"
OURS = re.compile(rf"{re.escape(UPLOAD)}.*|{HEX.pattern}{re.escape(SUFFIX)}", re.DOTALL)
ABANDONED_SECONDS = 3600
"""After which an unfinished upload is what a crash left, and not another server's at work."""
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
        self._own: PrivateFolder | None = None
        if folder is None:
            self._own = PrivateFolder("artifacts")
            folder = self._own.path
        _try_out(folder)
        self._folder = folder
        self._max_bytes = max_bytes
        self._cached_bytes = cached_bytes
        self._cache: OrderedDict[str, Artifact] = OrderedDict()
        self._known: dict[str, Stored] = {}
        self._intact: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()
        self._puts = threading.Lock()
        self._drop_abandoned()

    def close(self) -> None:
        """Drop the private folder."""
        if self._own is not None:
            self._own.close()

    def put(self, artifact: Artifact, data: bytes) -> bool:
        """Keep an artifact that was read from ``data``. False if it was there already.

        A file of its name with other bytes, which something outside damaged, is replaced.

        Raises:
            StoreFullError: there is no room for it.
            Unavailable: the folder cannot be read now.
            OSError: it could not be written.
        """
        path = self._folder / (artifact.digest.removeprefix(PREFIX) + SUFFIX)
        with self._puts:  # two must not both take the last room; readers need not wait for the disk
            there = self.open(artifact.digest)
            if there is not None:
                there.close()
                return False
            others = sum(size for name, size in self._entries() if name != path.name)
            if len(data) + others > self._max_bytes:
                raise StoreFullError
            self._write(path, data)
        self._remember(artifact, len(data))
        return True

    def open(self, digest: str) -> BufferedReader | None:
        """The file of an artifact; None if there is none of this digest with its bytes.

        A file is read and hashed the first time, and again when it changes.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        path = self._path(digest)
        if path is None:
            return None
        file: BufferedReader | None = None
        try:
            file = open_regular(path)
            if file is None or self._is_intact(file, path.name):
                return file
            file.close()
        except OSError as error:
            if file is not None:
                file.close()
            raise _failed(error) from None
        logger.error("the bytes of %s are not those it is named for", path.name)
        return None

    def get(self, digest: str) -> Artifact | None:
        """The artifact of this digest, ``sha256:`` and 64 hexadecimal digits, if it is there.

        Raises:
            Unavailable: the folder cannot be read now.
        """
        path = self._path(digest)
        try:
            there = path is not None and regular_size(path) is not None
        except OSError as error:
            raise _failed(error) from None
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
        for digest in self._digests():
            if digest not in self._known:
                with suppress(Unavailable):  # of this one file, and logged
                    self.get(digest)
            if digest in self._known:
                found.append(self._known[digest])
        return found

    def _is_intact(self, file: BufferedReader, name: str) -> bool:
        facts = os.fstat(file.fileno())
        seen = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if self._intact.get(name) != seen:
            if hashlib.file_digest(file, "sha256").hexdigest() + SUFFIX != name:
                return False
            file.seek(0)
            self._intact[name] = seen
        return True

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
            raise _failed(error) from None
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

    def _digests(self) -> list[str]:
        """Digest of every artifact's file, in order."""
        return sorted(
            PREFIX + name.removesuffix(SUFFIX)
            for name, _ in self._entries()
            if not name.startswith(UPLOAD)
        )

    def _entries(self) -> list[tuple[str, int]]:
        """Name and size of every file of ours, unfinished uploads included."""
        found = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    size = regular_size(entry.path) if OURS.fullmatch(entry.name) else None
                    if size is not None:
                        found.append((entry.name, size))
        except FileNotFoundError:  # the folder was taken away
            return []
        except OSError as error:
            raise _failed(error) from None
        return found

    def _drop_abandoned(self) -> None:
        """Delete what servers that crashed while they wrote have left."""
        for path in self._folder.glob(UPLOAD + "*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()

    def _path(self, digest: str) -> Path | None:
        """The file named for a digest, whether it is there or not; None for what is no digest."""
        name = digest.removeprefix(PREFIX)
        return self._folder / (name + SUFFIX) if HEX.fullmatch(name) else None

    def _write(self, path: Path, data: bytes) -> None:
        self._folder.mkdir(0o777 if self._own is None else 0o700, parents=True, exist_ok=True)
        write_whole(path, data, UPLOAD)


def _failed(error: OSError) -> Unavailable:
    logger.error("the folder of artifacts cannot be read: %s", error)
    message = "The artifacts cannot be read now."
    return Unavailable(message, code="artifact_store_failed", retry_after=30)


def _try_out(folder: Path) -> None:
    """Make the folder, read it, write to it: what permissions say is not all there is to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.listdir(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        message = f"the folder of artifacts {folder} cannot be used: {error.strerror}"
        raise OSError(message) from error
