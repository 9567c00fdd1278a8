"""Heads of requests, bounded in number and size of their lines."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from saccade_server.api.errors import HeadersTooLarge
from saccade_server.api.settings import ApiSettings

LINE_BYTES = 4  # ": " and the line break


class LimitHead:
    """Refuses a request with too many headers, or too long ones, its target included.

    The parser holds no more than this of a head that is not complete; one that arrives in a single
    piece is only measured here.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self.most = settings.max_headers
        self.limit = settings.max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._too_large(scope):
            await HeadersTooLarge().response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _too_large(self, scope: Scope) -> bool:
        headers = scope["headers"]
        if len(headers) > self.most:
            return True
        size = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
        size += sum(len(name) + len(value) + LINE_BYTES for name, value in headers)
        return size > self.limit
