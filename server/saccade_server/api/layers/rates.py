"""Limits of keys, before a body is read: requests at once, and in a minute."""

from __future__ import annotations

from collections import Counter

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.access.keys import Key, Limits, caller
from saccade_server.api.access.rates import Rates
from saccade_server.api.errors import ApiError, RateLimited
from saccade_server.api.layers.admission import needs_place

UNLIMITED = Limits()


class LimitRates:
    """Refuses what a key has had enough of, and tells in every answer what is left of it.

    What asks how the server is counts nowhere.
    """

    def __init__(self, app: ASGIApp, rates: Rates) -> None:
        self.app = app
        self.rates = rates
        self.open: Counter[str] = Counter()  # requests being answered, by the names of keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = caller.get()
        if scope["type"] != "http" or key.limits == UNLIMITED or not needs_place(scope["path"]):
            await self.app(scope, receive, send)
            return

        async def telling_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.rates.headers(key))
            await send(message)

        try:
            self._check(key)
        except ApiError as refusal:
            await refusal.response()(scope, receive, telling_send)
            return
        self.open[key.name] += 1
        try:
            await self.app(scope, receive, telling_send)
        finally:
            self.open[key.name] -= 1
            if not self.open[key.name]:
                del self.open[key.name]

    def _check(self, key: Key) -> None:
        most = key.limits.concurrent_requests
        if most is not None and self.open[key.name] >= most:
            message = f"The key {key.name!r} may have {most} requests at once."
            raise RateLimited(message, 1.0)
        self.rates.check(key, tokens=1)  # how many it will have is not known yet
        self.rates.take(key, requests=1)
