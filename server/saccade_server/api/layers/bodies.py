"""Bodies of requests: bounded each in size and time, and all together in memory."""

from __future__ import annotations

import asyncio
from types import TracebackType

import numpy as np
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.errors import ApiError, Timeout, TooLarge, Unavailable
from saccade_server.api.layers.media_types import check_media
from saccade_server.api.settings import ApiSettings

OBJECT_BYTES = 256
VALUE_BYTES = 64
KEY_BYTES = 128
"""What JSON costs beyond its bytes once it is parsed: an object, any other value, a key."""

PIECE_BYTES = 256 * 1024
FEW_BYTES = 4096

_CLOSE = {"connection": "close"}


class Budget:
    """Bytes that all bodies may take together."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    def check(self, size: int, held: int = 0) -> None:
        """Refuse ``size`` bytes more for a body that holds ``held`` already, if there is no room.

        Raises:
            TooLarge: there would be none even if it were alone.
            Unavailable: others have it.
        """
        if held + size > self.total:
            message = f"The body would take more than {self.total} bytes of memory."
            raise TooLarge(message, headers=_CLOSE)
        if self.used + size > self.total:
            message = "The requests being served fill the memory that bodies may take."
            raise Unavailable(message, close=True)


class Share:
    """What one body takes of the budget until the request has been answered."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.size = 0

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.budget.used -= self.size
        self.size = 0

    def grow(self, size: int) -> None:
        """Take ``size`` bytes more, or raise what :meth:`Budget.check` does."""
        self.budget.check(size, self.size)
        self.budget.used += size
        self.size += size


class LimitBodies:
    """Gives a body to the application in one piece, once all of it is there.

    Nothing is read of what is too large, of the wrong type or without room. A body keeps its room
    while its request is answered, because the request keeps it, or what was made of it, so long.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self.budget = Budget(settings.max_bodies_bytes)
        self.limits = {
            "POST": (settings.max_body_bytes, settings.body_timeout),
            "PUT": (settings.max_artifact_bytes, settings.upload_timeout),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in self.limits:
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        limit, timeout = self.limits[method]
        headers = Headers(scope=scope)
        try:
            self._check_announced(headers, limit)
            check_media(method, headers)
        except ApiError as refusal:
            await refusal.response()(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + timeout
        complete = False
        with Share(self.budget) as share:

            async def whole_receive() -> Message:
                nonlocal complete
                if complete:
                    return await receive()
                try:
                    async with asyncio.timeout_at(deadline):
                        message = await _collect(receive, share, limit)
                except TimeoutError:
                    raise Timeout("The request's body took too long.", headers=_CLOSE) from None
                complete = True
                if method == "POST":
                    share.grow(parsed_bytes(message.get("body", b"")))
                return message

            await self.app(scope, whole_receive, send)

    def _check_announced(self, headers: Headers, limit: int) -> None:
        announced = headers.get("content-length", "")
        size = int(announced[:20]) if announced.isdecimal() else 0
        if size > limit:
            raise _too_large(limit)
        self.budget.check(size)


async def _collect(receive: Receive, share: Share, limit: int) -> Message:
    """The body in one message, or that the client has left."""
    pieces: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return message
        pieces.append(message.get("body", b""))
        share.grow(len(pieces[-1]))
        if share.size > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
    return {"type": "http.request", "body": b"".join(pieces), "more_body": False}


def parsed_bytes(body: bytes) -> int:
    """An upper estimate, in bytes, of what parsing JSON adds to it: two bytes can make a list."""
    if len(body) <= FEW_BYTES:  # numpy takes longer to begin
        values = body.count(b"[") + body.count(b",")
        return _weighed(body.count(b"{"), values, body.count(b":"))
    objects = values = keys = 0
    for start in range(0, len(body), PIECE_BYTES):  # what is compared stays in the cache
        piece = np.frombuffer(memoryview(body)[start : start + PIECE_BYTES], np.uint8)
        objects += int(np.count_nonzero(piece == ord("{")))
        values += int(np.count_nonzero((piece == ord("[")) | (piece == ord(","))))
        keys += int(np.count_nonzero(piece == ord(":")))
    return _weighed(objects, values, keys)


def _weighed(objects: int, values: int, keys: int) -> int:
    return OBJECT_BYTES * objects + VALUE_BYTES * values + KEY_BYTES * keys


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body exceeds {limit} bytes.", headers=_CLOSE)
