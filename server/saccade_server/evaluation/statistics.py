"""Estimates with 95 % confidence intervals, and paired differences on the same scenes.

A share of independent answers has its Wilson interval. Quotients of sums, and all differences
between two settings, have percentile intervals of a bootstrap over scenes: both settings are
resampled together, so what a scene contributes to both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade_server.demo.rates import Rate
from saccade_server.evaluation.scoring import COLUMNS, Metric

RESAMPLES = 2000
LEVELS = (0.025, 0.975)

Table = NDArray[np.float64]
"""Counts [scenes, len(COLUMNS)]."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; ``n`` is what it was divided by."""

    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """True if a difference is one beyond chance."""
        return self.low > 0 or self.high < 0

    def as_json(self) -> dict[str, Any]:
        return {key: round(value, 4) for key, value in asdict(self).items()}


class Bootstrap:
    """Resamples of ``scenes`` scenes, the same ones for every setting."""

    def __init__(self, scenes: int, resamples: int = RESAMPLES, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        chances = np.full(scenes, 1 / scenes)
        self._weights = generator.multinomial(scenes, chances, resamples).astype(np.float64)

    def sums(self, table: Table) -> Table:
        """Column sums of each resample, [resamples, columns]."""
        return self._weights @ table


def estimate(metric: Metric, table: Table, bootstrap: Bootstrap) -> Estimate | None:
    """A metric over all scenes; None where it is not defined."""
    above, below = _parts(metric, table.sum(0))
    if not below:
        return None
    if metric.binary:
        rate = Rate(round(float(above)), round(float(below)))
        return Estimate(rate.share, *rate.interval, rate.total)
    value = float(above / below)
    return _with_percentiles(value, _quotients(metric, bootstrap.sums(table)), round(float(below)))


def difference(
    metric: Metric, table: Table, baseline: Table, bootstrap: Bootstrap
) -> Estimate | None:
    """A metric minus its value at the baseline, on the same scenes; None where not defined."""
    above, below = _parts(metric, table.sum(0))
    above_before, below_before = _parts(metric, baseline.sum(0))
    if not below or not below_before:
        return None
    changes = _quotients(metric, bootstrap.sums(table)) - _quotients(
        metric, bootstrap.sums(baseline)
    )
    value = float(above / below - above_before / below_before)
    return _with_percentiles(value, changes, round(float(below)))


def columns_of(counts: Mapping[str, int]) -> Table:
    """One answer's counts as a row, [columns]."""
    return np.array([counts.get(name, 0) for name in COLUMNS], np.float64)


def _parts(metric: Metric, sums: Table) -> tuple[Table, Table]:
    return sums @ columns_of(metric.above), sums @ columns_of(metric.below)


def _quotients(metric: Metric, sums: Table) -> Table:
    """The metric of each resample; NaN where it is not defined."""
    above, below = _parts(metric, sums)
    found: Table = np.full(len(above), math.nan)
    np.divide(above, below, out=found, where=below > 0)
    return found


def _with_percentiles(value: float, resampled: Table, n: int) -> Estimate:
    defined = resampled[~np.isnan(resampled)]
    low, high = np.quantile(defined, LEVELS) if len(defined) else (math.nan, math.nan)
    return Estimate(value, float(low), float(high), n)
