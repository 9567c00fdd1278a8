"""A name that a folder keeps, whoever opens it: replicas tell by it that they share one.

It is drawn once and lies in the folder, so it goes where the folder goes: through every mount of
it, into a copy of it, away with it.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path

FILE = ".saccade-folder"
NAME = re.compile(rb"[0-9a-f]{16}\n")
WRITTEN_SECONDS = 2.0
"""How long another server may take to write what it has begun."""


def folder_identity(folder: Path) -> str:
    """The name of a folder, drawn now if it has none.

    Raises:
        OSError: it cannot be read or written; the message says what helps.
    """
    path = folder / FILE
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return _read(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error
    with os.fdopen(handle, "wb") as file:
        name = secrets.token_hex(8)
        file.write(name.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return name


def _read(path: Path) -> str:
    end = time.monotonic() + WRITTEN_SECONDS
    while True:
        with path.open("rb") as file:
            content = file.read(64)
        if NAME.fullmatch(content):
            return content.decode().strip()
        if time.monotonic() > end:
            raise OSError(f"{path} does not hold the folder's name: remove it, then start again")
        time.sleep(0.02)
