"""Artifacts: files that calibration made for one model, known by the SHA-256 of their bytes.

made = client.put_artifact("heads.safetensors")
client.chat("What?", images=image, interventions=Intervention("act", artifact=made.id))
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field

from saccade_client.errors import InvalidInput
from saccade_client.wire import Reply, Wire

ArtifactSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview"

PREFIX = "sha256:"
HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)


class ArtifactFacts(Wire):
    """What the server knows of an artifact; `id` is how an intervention names it.

    `defaults` are what entries get that leave these fields out, as its calibration chose. `fits`
    says whether it was made for the model that is served. Times are seconds since the epoch;
    `uses` counts prompts, on all servers of the folder. One that a `profile` names stays.
    """

    id: str
    kind: str = ""
    bytes: int = 0
    notes: str = ""
    defaults: dict[str, Any] = Field(default_factory=dict)
    fits: bool = True
    created: int | None = None
    last_used: int | None = None
    uses: int = 0
    profile: str | None = None


class Artifact(Reply, ArtifactFacts):
    """The answer to an upload."""


class ArtifactList(Reply):
    """The answer of /v1/artifacts: what is there, and the room for it.

    What nothing has used for `ttl_seconds` leaves; None: never.
    """

    data: list[ArtifactFacts]
    total_bytes: int = 0
    max_bytes: int | None = None
    ttl_seconds: float | None = None


class ArtifactDeleted(Reply):
    """The answer to a deletion."""

    id: str
    deleted: bool = True


def artifact_id(source: ArtifactSource) -> str:
    """Return the name of an artifact, without asking a server. Raises InvalidInput."""
    return PREFIX + digest(content(source))


def content(source: ArtifactSource) -> bytes:
    """Return the bytes of a file, or those given. Raises InvalidInput if it cannot be read."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    try:
        return Path(source).read_bytes()
    except (OSError, TypeError, ValueError) as error:
        raise InvalidInput(f"the artifact {source!r} cannot be read: {error}") from error


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def checked(name: str) -> str:
    """Return the digits of an artifact's name, given with or without its prefix."""
    digits = name.removeprefix(PREFIX) if isinstance(name, str) else ""
    if not HEX.fullmatch(digits):
        raise InvalidInput(f"an artifact is named sha256: and 64 hexadecimal digits, not {name!r}")
    return digits
