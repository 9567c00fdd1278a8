"""Clients that cost little: one connection a stream, kept; an answer is read to its last byte."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

ITS_OWN = re.compile(rb'"(id|created)":("[^"]*"|\d+)')
"""What differs between two answers to the same request."""


class Connection(asyncio.Protocol):
    """Asks one request after another, and keeps the body of the last answer, chunked or not."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._data = bytearray()
        self._done: asyncio.Future[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._data.endswith(b"\r\n0\r\n\r\n") or self._is_whole():
            self._done.set_result(bytes(self._data))
            self._data.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server closed the connection"))

    async def ask(self, request: bytes) -> bytes:
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._done

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def _is_whole(self) -> bool:
        head, _, body = self._data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        return length is not None and len(body) >= int(length[1])


def request(path: str, body: dict[str, Any]) -> bytes:
    """The bytes of a POST as the usual clients send it."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: */*\r\nuser-agent: frontend\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def content(answer: bytes) -> bytes:
    """An answer's body without its framing, and without what differs from request to request.

    Raises:
        ValueError: it is not the answer to a request that was served.
    """
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(answer[:1000].decode())
    if b"transfer-encoding: chunked" in head.lower():
        whole = b""
        while body:
            size, _, rest = body.partition(b"\r\n")
            whole, body = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        body = whole
    return ITS_OWN.sub(rb'"\1":0', body)


async def ask_all(port: int, asked: Sequence[bytes], streams: int) -> set[bytes]:
    """Ask everything, ``streams`` at once; returns the different answers, whole."""
    loop = asyncio.get_running_loop()
    waiting = list(asked)
    found: set[bytes] = set()

    async def one() -> None:
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
        while waiting:
            found.add(await connection.ask(waiting.pop()))
        connection.close()

    await asyncio.gather(*(one() for _ in range(streams)))
    return {content(answer) for answer in found}
