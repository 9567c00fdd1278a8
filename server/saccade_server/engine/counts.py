"""Counts that cross from the engine to whoever shows them; plain data, no torch."""

from __future__ import annotations

from bisect import bisect_left

import msgspec

BETWEEN_TOKENS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
"""Seconds: vLLM's bounds, and three below them."""
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Histogram(msgspec.Struct):
    """How many values there were up to each bound, and above the last; and their sum.

    ``counts[i]`` are those above ``bounds[i - 1]`` and not above ``bounds[i]``.
    """

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    @classmethod
    def of(cls, bounds: tuple[float, ...]) -> Histogram:
        """An empty one."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def observe(self, value: float, times: int = 1) -> None:
        """Add a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def copy(self) -> Histogram:
        """As it is now."""
        return Histogram(self.bounds, [*self.counts], self.total)


class FormCount(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of one form so far; ``stage`` is set for work around steps (stages.py) instead.

    ``size`` is the padded number of rows, ``classes`` of key classes (1: no edits of attention),
    ``sites`` which edits of residuals there are, ``search`` what is looked for inside of layers;
    0 and "" where a form has none.
    """

    form: str
    stage: str = ""
    size: int = 0
    classes: int = 0
    sites: str = ""
    search: str = ""
    count: int
