"""The events of a streamed answer. Those with nothing but text are most of them: they are encoded
once for each choice, and the text of each is put in its place.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from saccade_server.api.sse import frame

HOLE = uuid.uuid4().hex
"""Stands where the text goes; no client can know it."""

Chunk = dict[str, Any]

_encode = msgspec.json.Encoder().encode


class TextEvents:
    """Framed events that differ in their text alone.

    Args:
        chunk: the whole chunk of a choice's index and text. Called once for each index.
    """

    def __init__(self, chunk: Callable[[int, str], Chunk]) -> None:
        self._chunk = chunk
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def event(self, index: int, text: str) -> bytes:
        """The bytes that :func:`~saccade_server.api.sse.frame` would give of the whole chunk."""
        around = self._around.get(index)
        if around is None:
            before, after = frame(self._chunk(index, HOLE)).split(b'"%b"' % HOLE.encode())
            around = self._around[index] = (before, after)
        return around[0] + _encode(text) + around[1]
