"""The way of a stream's events past all layers, from the engine's message to the socket.

Layers look at how a request begins and at how its answer begins and ends; what is in between they
hand on. A token's event is written to the connection as soon as its message has been read: no task
is woken for it, and nobody awaits anything.
"""

from __future__ import annotations

from typing import Protocol

from starlette.types import Scope

SHORTCUT = "shortcut"
"""Where the state of a request has its connection."""


class Shortcut(Protocol):
    """A connection that takes pieces of an answer that has begun."""

    streamed: int
    """Bytes of bodies that it was given so far."""

    @property
    def writable(self) -> bool:
        """False: not now, or not to this client, and then ``send`` knows what to do."""
        ...

    def write_piece(self, piece: bytes) -> None:
        """Send a piece of a body whose length was not announced."""
        ...


def shortcut(scope: Scope) -> Shortcut | None:
    """The request's connection, if it can be written to past the layers."""
    found: Shortcut | None = scope.get("state", {}).get(SHORTCUT)
    return found
