"""The two rounds over all replicas that have files read again; see ``cluster/files.py``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol
from uuid import uuid4

logger = logging.getLogger("saccade.reload")

SECONDS = 60.0
"""For each round; checking profiles reads their artifacts."""


class Replicas(Protocol):
    """All replicas of the application."""

    def count(self) -> int:
        """How many run."""

    def ask(self, method: str, round: str) -> list[Any]:
        """What the method of each returns, pairs of its name and something, or an exception.

        Raises:
            TimeoutError: one did not answer within :data:`SECONDS`.
        """


def reload(replicas: Replicas) -> bool:
    """Have all replicas read their files again. False if nothing has changed, or not everywhere."""
    round = uuid4().hex
    try:
        checked = _ask(replicas, "check_files", round)
    except _Failed as failed:
        return _nothing(str(failed))
    if len(checked) < replicas.count():
        return _nothing("not every replica could be asked")
    for name, wrong in checked.items():
        if wrong:
            return _nothing(f"replica {name}: {wrong}")
    try:
        applied = _ask(replicas, "apply_files", round)
    except _Failed as failed:
        return _not_all(str(failed))
    missing = sorted(checked.keys() - applied.keys())
    if missing:  # they have ended, or will see by themselves that they have missed a round
        return _not_all(f"nothing was heard of {', '.join(missing)}")
    words = next(iter(applied.values()))
    if not words:
        logger.warning("there is nothing to reload: the cluster was started without such a file")
    for word in words:
        logger.info("reloaded on %d replicas: %s", len(applied), word)
    return True


class _Failed(Exception):
    """A round came to nothing on one replica at least."""


def _ask(replicas: Replicas, method: str, round: str) -> Mapping[str, Any]:
    try:
        answers = replicas.ask(method, round)
    except Exception as error:  # Ray's own are of many kinds; the cluster goes on as it was
        raise _Failed(f"{type(error).__name__}: {error}".rstrip(": ")) from None
    for answer in answers:
        if isinstance(answer, Exception):
            raise _Failed(_last_line(answer))
    return dict(answers)


def _last_line(error: Exception) -> str:
    """Ray puts a replica's whole traceback before what happened there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _nothing(why: str) -> bool:
    logger.error("nothing was reloaded, what was in force stays: %s", why)
    return False


def _not_all(why: str) -> bool:
    logger.error("not every replica has reloaded yet: %s; it follows, or is replaced", why)
    return False
