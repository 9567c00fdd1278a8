"""The operator's file of keys: who may ask, how urgently, and for how much.

    [keys.alice]
    sha256 = "..."                # of the key; or the key itself: key = "..."
    priority = 5                  # of requests that name none; the lower goes first
    priority_ceiling = 0          # none may be below it
    requests_per_minute = 60
    tokens_per_minute = 100000
    images_per_minute = 120
    concurrent_requests = 8

A file that contradicts itself, or the server's other limits, counts not at all.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from saccade_interventions.suggest import hint
from saccade_server.api.access.keys import Key, Limits, digest_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST = re.compile(r"[0-9a-fA-F]{64}")
LIMITS = tuple(field.name for field in fields(Limits))
PRIORITIES = ("priority", "priority_ceiling")
FIELDS = ("key", "sha256", "admin", *PRIORITIES, *LIMITS)
LARGEST = 2**31


class KeyFileError(ValueError):
    """The file of keys, or one of them, cannot be used; the message says why."""


def load_keys(path: Path) -> tuple[Key, ...]:
    """Read a file of keys.

    Raises:
        KeyFileError: it cannot be read, or says something that is not understood.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{path}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise KeyFileError(f"{path}: is not TOML: {error}") from None
    try:
        return read_keys(content)
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from None


def read_keys(content: Mapping[str, Any]) -> tuple[Key, ...]:
    """Check what a file of keys says.

    Raises:
        KeyFileError: the first mistake. It names keys and fields, and no key is in it.
    """
    unknown = sorted(content.keys() - {"keys"})
    if unknown:
        raise KeyFileError(f"unknown table {unknown[0]!r}; keys are tables [keys.NAME]")
    tables = content.get("keys", {})
    if not isinstance(tables, dict) or not tables:
        raise KeyFileError("there is no key in it; keys are tables [keys.NAME]")
    keys = tuple(_key(name, table) for name, table in tables.items())
    check_distinct(keys)
    return keys


def check_distinct(keys: Iterable[Key]) -> None:
    """Refuse two keys of one name, and two names of one key.

    Raises:
        KeyFileError: there are such.
    """
    by_name: dict[str, Key] = {}
    by_digest: dict[bytes, Key] = {}
    for key in keys:
        if key.name in by_name:
            raise KeyFileError(f"two keys are called {key.name!r}; give each a name of its own")
        other = by_digest.get(key.digest)
        if other is not None:
            raise KeyFileError(f"{other.name!r} and {key.name!r} are the same key")
        by_name[key.name] = by_digest[key.digest] = key


def check_limits(keys: Iterable[Key], max_requests: int, max_images: int) -> None:
    """Refuse limits that the server's own leave without sense.

    Raises:
        KeyFileError: a limit is never reached, or lower than what one request may have.
    """
    for key in keys:
        most, images = key.limits.concurrent_requests, key.limits.images_per_minute
        if most is not None and most > max_requests:
            message = f"concurrent_requests = {most} is more than --max-requests {max_requests}"
            raise KeyFileError(f"key {key.name!r}: {message}, and never reached")
        if images is not None and images < max_images:
            message = f"images_per_minute = {images} is less than the {max_images} of one request"
            raise KeyFileError(f"key {key.name!r}: {message}, which could never be answered")


def check_tokens(keys: Iterable[Key], longest: int) -> None:
    """Refuse limits of tokens that a prompt of the served model may exceed alone.

    Raises:
        KeyFileError: there is one.
    """
    for key in keys:
        tokens = key.limits.tokens_per_minute
        if tokens is not None and tokens < longest:
            message = (
                f"tokens_per_minute = {tokens} is less than a prompt may have ({longest}); a "
                "longer one could never be answered. Raise it, or lower --max-model-len"
            )
            raise KeyFileError(f"key {key.name!r}: {message}")


def _key(name: str, table: Any) -> Key:
    def wrong(what: str) -> KeyFileError:
        return KeyFileError(f"key {name!r}: {what}")

    if not NAME.fullmatch(name):
        raise wrong("a name has letters, digits, '.', '_' and '-' only, and 64 of them at most")
    if not isinstance(table, dict):
        raise wrong("keys are tables [keys.NAME]")
    for field in sorted(table.keys() - set(FIELDS)):
        raise wrong(f"unknown field {field!r}; {hint(field, FIELDS, 'see docs/load.md.')}")
    admin = table.get("admin", False)
    if not isinstance(admin, bool):
        raise wrong("admin must be true or false")
    for field in LIMITS:
        if field in table and not _is_whole(table[field], 1):
            raise wrong(f"{field} must be a whole number above 0")
    for field in PRIORITIES:
        if field in table and not _is_whole(table[field], -LARGEST):
            raise wrong(f"{field} must be a whole number")
    ceiling = table.get("priority_ceiling", min(0, table.get("priority", 0)))
    priority = table.get("priority", max(0, ceiling))
    if priority < ceiling:
        raise wrong(
            f"priority = {priority} is more urgent than priority_ceiling = {ceiling} allows: the "
            "lower goes first"
        )
    limits = Limits(**{field: table[field] for field in LIMITS if field in table})
    return Key(name, _digest(table, wrong), admin, priority, ceiling, limits)


def _digest(table: Mapping[str, Any], wrong: Any) -> bytes:
    key, digest = table.get("key"), table.get("sha256")
    if (key is None) == (digest is None):
        raise wrong("give the key or its sha256, one of them")
    if digest is not None:
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise wrong("sha256 must be 64 hexadecimal digits")
        return bytes.fromhex(digest)
    if not isinstance(key, str) or key.split() != [key]:
        raise wrong("a key must be a text, not empty and without blanks")
    return digest_of(key)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < LARGEST
