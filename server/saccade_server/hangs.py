"""Says in the log when the engine is late, hangs and goes on; probes read the same figures."""

from __future__ import annotations

import logging
from asyncio import sleep

from saccade_server.api.settings import ApiSettings
from saccade_server.engine.client import EngineClient
from saccade_server.engine.heartbeat import BEAT_SECONDS
from saccade_server.engine.watchdog import HUNG, Lag

logger = logging.getLogger("saccade")


async def hangs(engine: EngineClient, settings: ApiSettings, *, report_only: bool) -> bool:
    """True once the engine hangs, False once it has died; with ``report_only`` a hang is logged."""
    late = hung = False
    while engine.alive:
        lag = engine.lag
        overdue = lag.overdue(settings.silence_timeout, settings.step_timeout)
        if overdue >= HUNG and not hung:
            late = hung = True
            logger.error("the engine hangs: %s; /live says no", _worded(lag, settings))
            if not report_only:
                return True
        elif overdue >= 1 and not late:
            late = True
            logger.warning("the engine is late: %s; /ready says no", _worded(lag, settings))
        elif overdue < 1 and late:
            late = hung = False
            logger.warning("the engine goes on")
        await sleep(BEAT_SECONDS)
    return False


def _worded(lag: Lag, settings: ApiSettings) -> str:
    if lag.silent >= settings.silence_timeout:  # whatever it was doing before
        return f"no sign of life for {lag.silent:.0f} s"
    return f"work and no end of a step for {lag.stalled:.0f} s"
