"""When a request must have been answered: one time for its preparation and its generation."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from starlette.datastructures import Headers

from saccade_server.api.errors import NO_RETRY, ApiError, BadRequest

TIMEOUT_HEADER = "x-request-timeout"
"""In which a client says for how many seconds it will wait, if that is less than the server's."""


class Deadline:
    """A moment on the running event loop's clock, ``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        self.at = asyncio.get_running_loop().time() + seconds

    @property
    def left(self) -> float:
        """Seconds until then, zero at least."""
        return max(self.at - asyncio.get_running_loop().time(), 0.0)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Cancel what is done inside when the time is over.

        Raises:
            ApiError: it is over; 504.
        """
        limit = asyncio.timeout_at(self.at)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise too_late() from None


current_deadline: ContextVar[Deadline] = ContextVar("saccade_deadline")
"""That of the request being served, since its body has come."""


def asked_seconds(headers: Headers, most: float) -> float:
    """How long a request may take: as its client says, and never longer than ``most`` seconds.

    Raises:
        BadRequest: the header is no time.
    """
    given = headers.get(TIMEOUT_HEADER)
    if given is None:
        return most
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        message = f"The header {TIMEOUT_HEADER} must be a number of seconds above 0."
        raise BadRequest(message, param=TIMEOUT_HEADER)
    return min(seconds, most)


def too_late() -> ApiError:
    """The error of a request that could not be answered in time."""
    late = ApiError("The answer took too long.", code="request_timeout", headers=dict(NO_RETRY))
    late.status = 504
    return late
