"""How much requests with a key have had in the last minute, and who has had enough.

A request counts when its head has come, its images before they are decoded, its prompt before it
goes to the engine. What it is answered counts when it is known: then there may be less than nothing
left, and the next request waits for it.
"""

from __future__ import annotations

import math

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from saccade_server.api.access.keys import Key
from saccade_server.api.errors import BadRequest, RateLimited

MINUTE = 60
UNBOUNDED = 2**62
KINDS = ("requests", "tokens", "images")


class Rates:
    """Sliding windows of a minute, by what is counted and the name of the key."""

    def __init__(self) -> None:
        self._storage = MemoryStorage()
        self._windows = SlidingWindowCounterRateLimiter(self._storage)

    def take(self, key: Key, **costs: int) -> None:
        """Count what a request is going to have: all of it, or nothing.

        Raises:
            BadRequest: the key will never have so much.
            RateLimited: there is not so much left.
        """
        self.check(key, **costs)
        self.add(key, **costs)

    def check(self, key: Key, **costs: int) -> None:
        """Refuse what :meth:`take` would, and count nothing.

        Raises:
            BadRequest: the key will never have so much.
            RateLimited: there is not so much left.
        """
        for kind, cost in costs.items():
            limit = _limit(key, kind)
            if limit is None:
                continue
            if cost > limit:
                message = f"The request has {cost} {kind}; the key may have {limit} a minute."
                raise BadRequest(message, code="exceeds_key_limit")
            if not self._windows.test(_item(key, kind), kind, key.name, cost=cost):
                wait = self._seconds_until(key, kind, cost)
                message = (
                    f"The key {key.name!r} may have {limit} {kind} a minute; try again in "
                    f"{math.ceil(wait)} s."
                )
                raise RateLimited(message, wait)

    def add(self, key: Key, **costs: int) -> None:
        """Count what was had, whether there was so much or not."""
        for kind, cost in costs.items():
            if cost and _limit(key, kind) is not None:
                item = _item(key, kind)
                place = item.key_for(kind, key.name)
                self._storage.acquire_sliding_window_entry(place, UNBOUNDED, MINUTE, cost)

    def headers(self, key: Key) -> dict[str, str]:
        """OpenAI's headers about the limits of a key, and the same about images."""
        found: dict[str, str] = {}
        for kind in KINDS:
            limit = _limit(key, kind)
            if limit is not None:
                used, reset = self._used(key, kind)
                found[f"x-ratelimit-limit-{kind}"] = str(limit)
                found[f"x-ratelimit-remaining-{kind}"] = str(max(limit - math.floor(used), 0))
                found[f"x-ratelimit-reset-{kind}"] = worded(reset)
        return found

    def _window(self, key: Key, kind: str) -> tuple[int, float, int, float]:
        """Of the minute before and of this one: how much, and seconds until it counts no more."""
        place = _item(key, kind).key_for(kind, key.name)
        return self._storage.get_sliding_window(place, MINUTE)

    def _used(self, key: Key, kind: str) -> tuple[float, float]:
        """What counts now, and seconds until nothing does."""
        before, before_ends, now, now_ends = self._window(key, kind)
        return before * before_ends / MINUTE + now, now_ends if now else before_ends

    def _seconds_until(self, key: Key, kind: str, cost: int) -> float:
        """Seconds until there is so much left, if nothing else is counted until then."""
        before, before_ends, now, now_ends = self._window(key, kind)
        room = (_limit(key, kind) or 0) - cost + 1  # what is below it leaves enough
        if now < room:  # the minute before fades
            return max(before_ends - MINUTE * (room - now) / before, 0.0) if before else 0.0
        this_ends = now_ends - MINUTE
        return this_ends + max(MINUTE - MINUTE * room / now, 0.0)


def worded(seconds: float) -> str:
    """A time as OpenAI's headers have it: 1m2.5s."""
    minutes, rest = divmod(math.ceil(10 * seconds) / 10, MINUTE)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


def _limit(key: Key, kind: str) -> int | None:
    found: int | None = getattr(key.limits, f"{kind}_per_minute")
    return found


def _item(key: Key, kind: str) -> RateLimitItemPerMinute:
    return RateLimitItemPerMinute(_limit(key, kind) or 0)
