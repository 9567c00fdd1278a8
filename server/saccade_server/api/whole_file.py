"""The answer that is a file whose name says what is in it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from io import BufferedReader
from typing import Annotated

from fastapi import Path, Response
from starlette.types import Receive, Scope, Send

from saccade_server.api.digest_folder import HEX
from saccade_server.api.sse import unless_disconnected

Digest = Annotated[
    str,
    Path(
        description="The SHA-256 of its bytes, 64 hexadecimal digits.",
        json_schema_extra={"pattern": f"^{HEX.pattern}$"},
    ),
]
"""A file's name in a route; one that is none is refused by the route itself."""
MEDIA_TYPE = "application/octet-stream"
PIECE_BYTES = 256 * 1024
CONTENT = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
"""What the OpenAPI document says of the bytes."""


class WholeFile(Response):
    """An open file, whatever becomes of its name; a request for a part is answered with all."""

    media_type = MEDIA_TYPE

    def __init__(
        self, file: BufferedReader, digest: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """``digest`` is of its bytes, so nobody has to ask for it again."""
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        own = {
            "cache-control": "private, max-age=31536000, immutable",
            "etag": f'"{digest}"',
            "accept-ranges": "none",
            "content-length": str(self.size),
        }
        super().__init__(headers={**own, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.file:
            await unless_disconnected(receive, self._send(scope, send))

    async def _send(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        left = self.size if scope["method"] == "GET" else 0
        while left:
            piece = await asyncio.to_thread(self.file.read, min(left, PIECE_BYTES))
            if not piece:
                raise OSError("a file became shorter while it was sent")
            left -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
