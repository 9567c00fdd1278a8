"""A folder of artifacts, each named by the SHA-256 of its bytes.

Names are hexadecimal digests and nothing else, files appear complete or not at all, and what is
read is checked again, so replicas may share a folder and may put the same artifact at once.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from saccade_interventions.artifacts import Artifact, ArtifactError, artifact_id, read_artifact

logger = logging.getLogger("saccade.artifacts")

HEX = re.compile(r"[0-9a-f]{64}")
PREFIX = "sha256:"
SUFFIX = ".safetensors"
UPLOAD = ".upload-"
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
        self._private = folder is None
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="saccade-artifacts-"))
            # Also if nobody closes the store, at the latest when the interpreter ends.
            self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"the folder of artifacts {folder} cannot be written to")
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
        if self._private:
            self._cleanup()

    def put(self, artifact: Artifact, data: bytes) -> bool:
        """Keep an artifact that was read from ``data``. False if it was there already.

        A file of its name with other bytes, which something outside damaged, is replaced.

        Raises:
            StoreFullError: there is no room for it.
            OSError: it could not be written.
        """
        path = self._path(artifact.digest)
        with self._puts:  # two must not both take the last room; readers need not wait for the disk
            if self.path(artifact.digest) is not None:
                return False
            others = sum(size for name, size in self._entries() if name != path.name)
            if len(data) + others > self._max_bytes:
                raise StoreFullError
            self._write(path, data)
        self._remember(artifact, len(data))
        return True

    def path(self, digest: str) -> Path | None:
        """The file of an artifact, None if there is none of this digest with its bytes.

        A file is read and hashed the first time, and again when it changes.
        """
        path = self._file(digest)
        try:
            if path is None:
                return None
            facts = path.stat()
            seen = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
            if self._intact.get(path.name) == seen:
                return path
            if artifact_id(path.read_bytes()).removeprefix(PREFIX) + SUFFIX != path.name:
                logger.error("the bytes of %s are not those it is named for", path.name)
                return None
        except OSError:
            return None
        self._intact[path.name] = seen
        return path

    def get(self, digest: str) -> Artifact | None:
        """The artifact of this digest, ``sha256:`` and 64 hexadecimal digits, if it is there."""
        path = self._file(digest)
        with self._lock:
            if path is None:  # whoever takes the file away takes the artifact away
                self._cache.pop(digest, None)
                return None
            if digest in self._cache:
                self._cache.move_to_end(digest)
                return self._cache[digest]
        return self._load(digest, path)

    def listing(self) -> list[Stored]:
        """What is in the folder, by digest; files that are no artifacts are left out."""
        found = []
        for digest, _ in self._files():
            if digest not in self._known:
                self.get(digest)
            if digest in self._known:
                found.append(self._known[digest])
        return found

    def _load(self, digest: str, path: Path) -> Artifact | None:
        try:
            data = path.read_bytes()
            artifact = read_artifact(data)
        except FileNotFoundError:
            return None
        except (OSError, ArtifactError) as error:
            logger.error("artifact %s is not readable: %s", digest, error)
            return None
        if artifact.digest != digest:
            logger.error("the bytes of artifact %s are not those it is named for", digest)
            return None
        self._remember(artifact, len(data))
        return artifact

    def _remember(self, artifact: Artifact, size: int) -> None:
        known = Stored(artifact.digest, artifact.kind, artifact.model, artifact.notes, size)
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

    def _files(self) -> list[tuple[str, int]]:
        """Digest and size of every artifact's file."""
        return sorted(
            (PREFIX + name.removesuffix(SUFFIX), size)
            for name, size in self._entries()
            if not name.startswith(UPLOAD)
        )

    def _entries(self) -> Iterator[tuple[str, int]]:
        """Name and size of every file of ours, unfinished uploads included."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                stem = entry.name.removesuffix(SUFFIX)
                if entry.name.startswith(UPLOAD) or (stem != entry.name and HEX.fullmatch(stem)):
                    with suppress(FileNotFoundError):  # another server may have just taken it away
                        yield entry.name, entry.stat().st_size

    def _drop_abandoned(self) -> None:
        """Delete what servers that crashed while they wrote have left."""
        for path in self._folder.glob(UPLOAD + "*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()

    def _file(self, digest: str) -> Path | None:
        """The file named for a digest, whatever its bytes."""
        if not HEX.fullmatch(digest.removeprefix(PREFIX)):
            return None
        path = self._path(digest)
        return path if path.is_file() else None

    def _path(self, digest: str) -> Path:
        return self._folder / (digest.removeprefix(PREFIX) + SUFFIX)

    def _write(self, path: Path, data: bytes) -> None:
        """A reader, or a server that starts after a crash, sees the whole file or none."""
        handle, name = tempfile.mkstemp(prefix=UPLOAD, dir=self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o640)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
