"""What Ray's HTTP proxies do around every request, as middleware of ours in their process.

Ray gives a proxy's middleware by the environment of its nodes (:data:`VARIABLE`). Without it
requests are served all the same, but keys of conversations are only the client's own, bodies are
unlimited until they reach a replica, and what Ray itself refuses is plain text.

A proxy knows neither the model nor the server's options, so what is limited here is limited by the
defaults; keys and all other limits are the replicas'.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import MutableMapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.affinity import HEADER, affinity_key
from saccade_server.api.layers.bodies import LimitBodies
from saccade_server.api.layers.read_out import ReadOut
from saccade_server.api.settings import ApiSettings
from saccade_server.cluster.answers import Answers

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Of the environment of every node, read when a proxy starts."""

PATH = "saccade_server.cluster.entrance.middlewares"
"""What the variable is set to."""

WITH_BODY = frozenset({"POST", "PUT"})
KEYED_BYTES = 8 * 2**20
"""Larger bodies get no key: a proxy must not be held up by one request."""
AT_ONCE_BYTES = 64 * 1024


def middlewares() -> list[Middleware]:
    """What Ray puts around a proxy's own application, innermost first."""
    settings = ApiSettings("")
    return [
        Middleware(Key),
        Middleware(LimitBodies, settings=settings),
        Middleware(ReadOut, settings=settings),
        Middleware(Answers),
    ]


def announce(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have the proxies of a Ray that is started with this environment use what is here."""
    environment.setdefault(VARIABLE, PATH)


class Key:
    """Has the whole body before anything of a request is sent on, and its conversation's key.

    A request that came without a key gets that of its body, the one that our clients send.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in WITH_BODY:
            await self.app(scope, receive, send)
            return
        whole = await receive()
        if whole["type"] != "http.request":  # the client has left
            return
        if scope["method"] == "POST" and HEADER not in Headers(scope=scope):
            key = await _key_of(whole.get("body", b""))
            if key is not None:
                MutableHeaders(scope=scope)[HEADER] = key

        unread = [whole]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope, again, send)


async def _key_of(body: bytes) -> str | None:
    if len(body) > KEYED_BYTES:
        return None
    if len(body) > AT_ONCE_BYTES:
        return await asyncio.to_thread(_key, body)
    return _key(body)


def _key(body: bytes) -> str | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):  # the replica says what is wrong with it
        return None
    return affinity_key(value) if isinstance(value, dict) else None
