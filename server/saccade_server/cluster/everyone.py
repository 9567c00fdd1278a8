"""A question to all replicas of an application, and what those say that answer in time.

Ray's own waiting for a broadcast gives up on all answers with the latest, so each is waited for
here. What is used of Ray beyond its interface is that of the pinned version.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

logger = logging.getLogger("saccade")


@dataclass(frozen=True)
class Answers:
    """What came in time, in no order, and how many replicas did not answer or failed."""

    found: tuple[Any, ...]
    silent: int


async def ask_everyone(handle: DeploymentHandle[Any], method: str, seconds: float) -> Answers:
    """Call ``method`` of every running replica, and wait for ``seconds`` at most."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    try:
        async with asyncio.timeout_at(end):
            results = await handle.broadcast(method)._fetch_replica_results_async()
    except Exception as error:  # Ray's own are of many kinds, and none should end a scrape
        logger.warning("other replicas could not be asked: %s", type(error).__name__)
        return Answers((), 1)
    waits: list[Coroutine[Any, Any, Any]] = [
        result.get_async()  # type: ignore[no-untyped-call]
        for result in results
    ]
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, timeout=max(end - loop.time(), 0.0))
    for task in tasks:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    found = tuple(answer for answer in answers if not isinstance(answer, BaseException))
    return Answers(found, len(answers) - len(found))
