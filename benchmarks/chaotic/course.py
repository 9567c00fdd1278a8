"""Many clients that ask without a pause, and what became of every request.

A client tries again as the SDK does; where that gives up, or a stream has broken off, the request
is asked once more from the beginning, as an application would. What then is no answer is an error,
and whatever takes longer than anything here may take has hung.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx2

from chaotic.asked import Asked, Said
from saccade_client import APIError, AsyncSaccade, ConnectionFailed, SaccadeError

TRIES = 4  # of a whole request
SDK_RETRIES = 5
HANG_SECONDS = 240.0


@dataclass(frozen=True)
class Outcome:
    """What became of a request: what was said, or why not.

    ``failures`` are its failed tries: what failed, and when.
    """

    asked: Asked
    began: float
    ended: float
    said: Said | None
    error: str = ""
    clear: bool = True
    failures: tuple[tuple[str, float], ...] = ()

    @property
    def hung(self) -> bool:
        """Whether it was given up without an end."""
        return self.error == "hung"


@dataclass
class Course:
    """Asks requests of a mix, ``clients`` at once, until it is stopped."""

    url: str
    mix: Sequence[Asked]
    clients: int
    outcomes: list[Outcome] = field(default_factory=list)
    in_flight: int = 0
    stopping: bool = False

    async def run(self) -> None:
        """Ask until :attr:`stopping`, then wait for the last answers."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx2.AsyncClient(limits=limits, trust_env=False) as http:
            # All of them share a loop, and cores with what they ask: connecting takes its time.
            client = AsyncSaccade(
                self.url, http_client=http, timeout=HANG_SECONDS, max_retries=SDK_RETRIES
            )
            await client.models()
            await asyncio.gather(*(self._client(client, at) for at in range(self.clients)))

    async def _client(self, client: AsyncSaccade, number: int) -> None:
        draws = random.Random(number)
        while not self.stopping:
            self.in_flight += 1
            self.outcomes.append(await outcome(client, draws.choice(self.mix)))
            self.in_flight -= 1

    async def more(self, count: int) -> None:
        """Wait until so many more requests have ended."""
        wanted = len(self.outcomes) + count
        while len(self.outcomes) < wanted:
            await asyncio.sleep(0.05)


async def outcome(client: AsyncSaccade, asked: Asked) -> Outcome:
    """Ask until there is an answer, or :data:`TRIES` times."""
    began = time.monotonic()
    failures: list[tuple[str, float]] = []
    try:
        async with asyncio.timeout(HANG_SECONDS):
            for _ in range(TRIES):
                try:
                    said = await asked.ask(client)
                    return Outcome(asked, began, time.monotonic(), said, failures=tuple(failures))
                except SaccadeError as error:
                    failures.append((named(error), time.monotonic()))
                    if not is_clear(error) or not repeatable(error):
                        return Outcome(
                            asked, began, time.monotonic(), None, named(error), is_clear(error),
                            tuple(failures),
                        )  # fmt: skip
    except TimeoutError:
        return Outcome(asked, began, time.monotonic(), None, "hung", False, tuple(failures))
    return Outcome(asked, began, time.monotonic(), None, failures[-1][0], True, tuple(failures))


def repeatable(error: SaccadeError) -> bool:
    """Whether an application would ask again: nothing was wrong with the request."""
    return not isinstance(error, APIError) or error.status >= 500 or error.status in (0, 429)


def is_clear(error: SaccadeError) -> bool:
    """Whether it says what happened: a code of ours, or that the connection went away."""
    if isinstance(error, APIError):
        return bool(error.code) and error.code != "internal_error"
    return isinstance(error, ConnectionFailed) or bool(str(error))


def named(error: SaccadeError) -> str:
    """In a word or two."""
    code = f" {error.status} {error.code}" if isinstance(error, APIError) else ""
    return type(error).__name__ + code


def counted(outcomes: Sequence[Outcome], right: dict[str, Said]) -> dict[str, int]:
    """How many requests ended how; see :func:`verdict`."""
    found = Counter(verdict(one, right[one.asked.name]) for one in outcomes)
    return dict(sorted(found.items()))


def verdict(one: Outcome, right: Said) -> str:
    """What to make of an outcome, given what a lone server says to the same request."""
    if one.hung:
        return "hung"
    if one.said is None:
        return "clear error" if one.clear else "unclear error"
    if not one.said.is_steered_as(right):
        return "without its intervention"
    if not one.said.says(right):
        return "another answer"
    return "right at once" if not one.failures else "right after it was asked again"
