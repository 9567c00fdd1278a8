"""Keys and their names. A name stands for the key wherever something is counted or written down.

A key itself is compared, as a digest and in constant time, and kept nowhere else.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """How much requests with a key may have; None: as much as there is."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    images_per_minute: int | None = None
    concurrent_requests: int | None = None


@dataclass(frozen=True)
class Key:
    """A key by its SHA-256; an ``admin`` key may change what the server has.

    ``priority`` is that of requests that name none; none may be below ``priority_ceiling``, if
    there is one: the lower goes first.
    """

    name: str
    digest: bytes = field(repr=False)
    admin: bool = False
    priority: int = 0
    priority_ceiling: int | None = None
    limits: Limits = Limits()


NOBODY = Key("", b"")
"""Who asks a server without keys, or a route that needs none."""

caller: ContextVar[Key] = ContextVar("saccade_caller", default=NOBODY)
"""The key that the request being served came with."""


class KeyRing:
    """The keys of a server; without any it is open to everybody."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.keys = tuple(keys)

    @property
    def admins(self) -> bool:
        """Whether anybody may change what the server has."""
        return any(key.admin for key in self.keys)

    @property
    def guards(self) -> bool:
        """Whether a key is needed at all: for keys of admins alone it is not."""
        return any(not key.admin for key in self.keys)

    def find(self, authorization: str) -> Key | None:
        """The key in a header's value, if it is one of these."""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        # Header values are latin-1 on the wire.
        digest = hashlib.sha256(key.strip(" \t").encode("latin-1", "replace")).digest()
        # Every key is compared, so the time does not tell which one nearly matched.
        found = [known for known in self.keys if hmac.compare_digest(digest, known.digest)]
        return found[0] if found else None


def plain_keys(users: Iterable[str], admins: Iterable[str]) -> tuple[Key, ...]:
    """Keys that came without names; they are called by their place in the list."""
    return (
        *(Key(f"api-key-{at}", digest_of(key)) for at, key in enumerate(users, 1)),
        *(Key(f"admin-key-{at}", digest_of(key), admin=True) for at, key in enumerate(admins, 1)),
    )


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()
