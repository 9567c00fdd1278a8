"""Whether an engine gets on: how long it has been silent, or has had work and made no step.

Only time that the watcher itself ran counts. A machine that slept, a process group that was stopped
or an event loop that was held up gives one long tick, which counts as a short one; so an engine is
never called hung for what kept its watcher too.
"""

from __future__ import annotations

from dataclasses import dataclass

from saccade_server.engine.heartbeat import BEAT_SECONDS, Beat

LONGEST_TICK = 2 * BEAT_SECONDS
HUNG = 2.0
"""Times a limit after which an engine is not late any more but hung."""


@dataclass(frozen=True)
class Lag:
    """Seconds without a sign of life, and seconds with work and without the end of a step."""

    silent: float = 0.0
    stalled: float = 0.0

    def overdue(self, silence: float, step: float) -> float:
        """How many times the limits are used up: late from 1 on, hung from :data:`HUNG` on."""
        return max(self.silent / silence, self.stalled / step)


class Watchdog:
    """Adds up the lag, tick by tick."""

    def __init__(self) -> None:
        self.lag = Lag()
        self._last = Beat(0, False)
        self._then: float | None = None

    def tick(self, now: float, beat: Beat | None) -> None:
        """Take what was heard since the tick before; ``now`` is of a monotonic clock."""
        passed = 0.0 if self._then is None else min(now - self._then, LONGEST_TICK)
        self._then = now
        known = beat or self._last
        waits = known.work and self._last.work and known.steps == self._last.steps
        self.lag = Lag(
            silent=0.0 if beat else self.lag.silent + passed,
            stalled=self.lag.stalled + passed if waits else 0.0,
        )
        self._last = known
