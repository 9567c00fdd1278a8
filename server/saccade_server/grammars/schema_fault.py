"""Where in a schema the fault lies that llguidance has told without a place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from saccade_server.grammars.errors import Path
from saccade_server.grammars.schema_reader import ALONE, IN_LISTS, IN_MAPS

SECONDS: Final = 1.0
"""How long the place is looked for; what is not found by then is told as far as it is known."""

Wrong: TypeAlias = Callable[[Sequence[Path]], str | None]
"""What is wrong with parts of a schema of which each must hold, in llguidance's words."""

Target: TypeAlias = Callable[[Path], Path | None]
"""Where the reference of the part at a path leads to, if it has one."""


def fault(document: Any, message: str, wrong: Wrong, target: Target) -> tuple[Path, str]:
    """The innermost part that fails for the same reason by itself, and what is said of it."""
    until = time.monotonic() + SECONDS
    path: Path = ()
    seen = {path}
    while True:
        below = list(_parts(document, path))
        led = target(path)
        parts = [part for part in (below if led is None else [*below, led]) if part not in seen]
        parts = [part for part in parts if not isinstance(_at(document, part), bool)]
        found = _failing(parts, message, wrong, until)
        if found is None:
            return path, message
        path, message = found
        seen.add(path)


def _failing(
    parts: Sequence[Path], message: str, wrong: Wrong, until: float
) -> tuple[Path, str] | None:
    """The first of these that fails alone, found by halves."""
    said = wrong(parts) if parts and time.monotonic() < until else None
    if said is None or not _alike(said, message):
        return None
    while len(parts) > 1:
        if time.monotonic() > until:
            return None
        first, second = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        again = wrong(first)
        parts = first if again is not None and _alike(again, message) else second
    alone = wrong(parts)
    return None if alone is None else (parts[0], alone)


def _alike(one: str, other: str) -> bool:
    if "nsatisfiable" in one and "nsatisfiable" in other:
        return True
    return one.split("\n")[0].split(": ")[1:] == other.split("\n")[0].split(": ")[1:]


def _parts(document: Any, path: Path) -> Iterator[Path]:
    """Schemas directly within the one at ``path``."""
    schema = _at(document, path)
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        if key in IN_MAPS:
            yield from ((*path, key, name) for name in value)
        elif key in IN_LISTS or (key == "items" and isinstance(value, list)):
            yield from ((*path, key, index) for index in range(len(value)))
        elif key in ALONE or key == "additionalItems":
            yield (*path, key)


def _at(document: Any, path: Path) -> Any:
    for step in path:
        document = document[step]
    return document
