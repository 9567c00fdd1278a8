"""When a request must have been answered: one time for its preparation and its generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from saccade_server.api.errors import NO_RETRY, ApiError


class Deadline:
    """A moment on the running event loop's clock, ``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        self._at = asyncio.get_running_loop().time() + seconds

    @property
    def left(self) -> float:
        """Seconds until then, zero at least."""
        return max(self._at - asyncio.get_running_loop().time(), 0.0)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Cancel what is done inside when the time is over.

        Raises:
            ApiError: it is over; 504.
        """
        limit = asyncio.timeout_at(self._at)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise too_late() from None


def too_late() -> ApiError:
    """The error of a request that could not be answered in time."""
    late = ApiError("The answer took too long.", code="request_timeout", headers=dict(NO_RETRY))
    late.status = 504
    return late
