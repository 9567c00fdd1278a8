"""What is written to a connection in one turn of the event loop goes to its socket at once.

The head of an answer, its body and its end are written one after another, and each would be a call
of the system, and a packet, of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

MOST_HELD = 16 * 1024
"""Bytes: more are handed on, so that who writes still hears when the client does not read."""


class JoiningTransport(asyncio.Transport):
    """Another transport, whose ``write`` holds a little back until the turn has ended."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.apart = transport
        """The other: what is written there must come after :meth:`flush`."""
        self._loop = loop
        self._held: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write, with what is still to come in this turn."""
        if not data:
            return
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(bytes(data))
        self._size += len(data)
        if self._size > MOST_HELD:
            self.flush()

    def flush(self) -> None:
        """Hand on what is held."""
        if self._held:
            held, self._held, self._size = self._held, [], 0
            self.apart.write(b"".join(held))

    def close(self) -> None:
        """Close once everything was written."""
        self.flush()
        self.apart.close()

    def write_eof(self) -> None:
        """Say that nothing comes after what was written."""
        self.flush()
        self.apart.write_eof()

    def abort(self) -> None:
        """Close now; what is held is lost, as all that was not sent."""
        self._held = []
        self._size = 0
        self.apart.abort()

    def is_closing(self) -> bool:
        """True once it was closed, by whichever side."""
        return self.apart.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the other's."""
        return self.apart.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """As the other's."""
        self.apart.pause_reading()

    def resume_reading(self) -> None:
        """As the other's."""
        self.apart.resume_reading()
