"""Artifacts that nothing uses leave the folder, if the operator wants that."""

from __future__ import annotations

import asyncio
import logging

from saccade_server.api.errors import Unavailable
from saccade_server.api.services import Services

logger = logging.getLogger("saccade.artifacts")

ROUNDS = 4
"""In the time that an artifact has, so it stays at most a quarter longer."""
LONGEST_PAUSE = 600.0


async def expire_artifacts(services: Services) -> None:
    """Look after them until cancelled. The first round comes after a pause, so that whoever uses
    an artifact of a server that was down for long has a moment to say so.
    """
    seconds = services.settings.artifact_ttl
    if seconds is None:
        return
    while True:
        await asyncio.sleep(min(seconds / ROUNDS, LONGEST_PAUSE))
        kept = services.profiles.artifacts()
        try:
            gone = await asyncio.to_thread(services.artifacts.expire, seconds, kept)
        except Unavailable:  # logged where it was met
            continue
        for digest in gone:
            logger.info("artifact %s was deleted: unused for %.0f s", digest, seconds)
