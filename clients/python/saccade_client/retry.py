"""When to try again, and how long to wait first. Pure: it neither sleeps nor sends.

Waits double from FIRST_DELAY to LONGEST_DELAY seconds and are then shortened by up to a quarter at
random, so that clients which failed together do not return together. A server's Retry-After wins.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx2

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
# Without a reply, another try is safe and useful only in these cases: the server may still be at
# work on a request whose reply is late, so a read timeout is not repeated.
RETRIED_ERRORS = (
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.NetworkError,
    httpx2.RemoteProtocolError,
)
FIRST_DELAY = 0.5
LONGEST_DELAY = 8.0
LONGEST_RETRY_AFTER = 120.0
JITTER = 0.25


@dataclass(frozen=True)
class RetryPolicy:
    """At most `max_retries` further tries; `jitter` draws from [0, 1), `now` is in Unix seconds."""

    max_retries: int = 2
    jitter: Callable[[], float] = random.random
    now: Callable[[], float] = time.time

    def after_error(self, attempt: int, error: Exception) -> float | None:
        """Return the seconds to wait after try number `attempt` (from 0), or None to give up."""
        if attempt >= self.max_retries or not isinstance(error, RETRIED_ERRORS):
            return None
        return self._backoff(attempt)

    def after_reply(self, attempt: int, status: int, headers: Mapping[str, str]) -> float | None:
        """Return the seconds to wait after an error reply, or None to give up."""
        refused = headers.get("x-should-retry", "").strip().lower() == "false"
        if attempt >= self.max_retries or status not in RETRIED_STATUSES or refused:
            return None
        asked = retry_after(headers.get("retry-after", ""), self.now())
        return self._backoff(attempt) if asked is None else min(asked, LONGEST_RETRY_AFTER)

    def _backoff(self, attempt: int) -> float:
        delay = min(FIRST_DELAY * 2.0 ** min(attempt, 16), LONGEST_DELAY)
        return delay * (1.0 - JITTER * self.jitter())


def retry_after(value: str, now: float) -> float | None:
    """Read a Retry-After header, seconds or a date, as seconds from `now`; None if neither."""
    value = value.strip()
    if value.isascii() and value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(moment.timestamp() - now, 0.0)
    except (ValueError, OverflowError):
        return None
