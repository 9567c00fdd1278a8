"""Decode server-sent events from bytes, however the network cut them.

Bytes are joined into lines before they are decoded, so a UTF-8 character may arrive in two pieces.
Comments (keep-alives) and unknown fields are dropped; an event the stream's end cuts short is never
delivered. It knows nothing of HTTP or of what the data means.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE_END = re.compile(rb"\r\n|\n|\r")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LARGEST_EVENT = 16 * 1024 * 1024


class EventTooLarge(ValueError):
    """An event exceeds LARGEST_EVENT bytes; reading on could exhaust memory."""


@dataclass(frozen=True)
class Event:
    """One event: `data` is its data lines joined by newlines."""

    data: str
    name: str = "message"


class SSEDecoder:
    """Feed it chunks in order; it hands back each event once its closing blank line is there."""

    def __init__(self) -> None:
        self._tail = bytearray()
        self._after_cr = False
        self._first_line = True
        self._data: list[str] = []
        self._data_size = 0
        self._name = ""

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that `chunk` completes. Raises EventTooLarge."""
        for line in self._lines(chunk):
            if line:
                self._field(line)
            elif event := self._dispatch():
                yield event
        if self._data_size + len(self._tail) > LARGEST_EVENT:
            raise EventTooLarge(f"a server-sent event exceeds {LARGEST_EVENT} bytes")

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        if not chunk:
            return
        if self._after_cr and chunk.startswith(b"\n"):
            # The second half of a CRLF whose first half already ended the line.
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        first, *rest = LINE_END.split(chunk)
        self._tail += first
        for piece in rest:
            line = bytes(self._tail)
            self._tail = bytearray(piece)
            if self._first_line:
                line = line.removeprefix(BYTE_ORDER_MARK)
                self._first_line = False
            yield line

    def _field(self, line: bytes) -> None:
        # A comment starts with the colon: its field name is empty, hence unknown.
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._data_size += len(line)
        elif name == "event":
            self._name = value

    def _dispatch(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._data_size, self._name = [], 0, ""
        return Event("\n".join(data), name or "message") if data else None
