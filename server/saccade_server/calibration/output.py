"""Writing an artifact, and saying what to do with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from saccade_interventions.artifacts import read_artifact, write_artifact
from saccade_interventions.defaults import NOTHING
from saccade_server.api.artifact_store import ArtifactStore

STORE_BYTES = 4096 * 2**20

DIGEST = "<digest>"
"""Stands for the artifact in an example entry."""


@dataclass(frozen=True)
class Written:
    """An artifact on disk."""

    path: Path
    digest: str
    kind: str


def write_file(
    path: Path,
    kind: str,
    fingerprint: str,
    tensors: Mapping[str, Any],
    notes: str,
    defaults: Mapping[str, Any] = NOTHING,
) -> Written:
    """Write an artifact; the file appears complete or not at all.

    Raises:
        ArtifactError: the numbers are no valid artifact.
        OSError: the file cannot be written.
    """
    data = as_artifact(kind, fingerprint, tensors, notes, defaults)
    replace_file(path, data)
    return Written(path, read_artifact(data).digest, kind)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole, in the place of what is there.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.write_bytes(data)
    temporary.replace(path)


def as_artifact(
    kind: str,
    fingerprint: str,
    tensors: Mapping[str, Any],
    notes: str = "",
    defaults: Mapping[str, Any] = NOTHING,
) -> bytes:
    """The bytes of an artifact, of anything that numpy takes.

    Raises:
        ArtifactError: the numbers are no valid artifact.
    """
    arrays = {name: np.asarray(values) for name, values in tensors.items()}
    return write_artifact(kind, fingerprint, arrays, notes, defaults)


def install(written: Written, store: Path) -> None:
    """Put an artifact into the folder that servers read.

    Raises:
        OSError, StoreFullError: there is no room, or no right to write.
    """
    data = written.path.read_bytes()
    keeper = ArtifactStore(store, STORE_BYTES)
    keeper.put(read_artifact(data), data)


def show_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None)
    for title in header:
        table.add_column(title)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_use(
    console: Console, written: Written, entry: Mapping[str, Any] | None, store: Path | None
) -> None:
    """Print digest and file, and ``entry`` with the digest in place of its ``DIGEST``."""
    console.print(f"{written.kind} artifact: {written.path}")
    console.print(f"artifact: {written.digest}", soft_wrap=True)
    if store is not None:
        console.print(f"It is in {store}: start the server with --artifacts {store}.")
    else:
        console.print(
            "To use it, upload it with PUT /v1/artifacts/<digest> and an admin key, or calibrate "
            "with --artifacts FOLDER and serve with the same folder."
        )
    if entry is not None:
        console.print("A request names it so:")
        filled = {
            name: written.digest if value == DIGEST else value for name, value in entry.items()
        }
        console.print_json(data=filled)
