"""Estimates with 95 % confidence intervals, and paired differences on the same scenes.

A share of answers has the Wilson interval of its effective number of answers: answers about one
scene stand or fall together, and count for less than as many about different scenes (Dean and
Pagano, J. Survey Stat. Methodol. 3, 2015). Quotients of sums, and all differences between two
settings, have percentile intervals of a bootstrap over scenes: both settings are resampled
together, so what a scene contributes to both cancels.

Where few scenes change, such an interval is too short: four changes of one sign and none of the
other leave zero out, but come about by chance in one of eight cases. A difference is therefore
called one beyond chance only if an exact sign test over the scenes that changed agrees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade_server.demo.rates import wilson
from saccade_server.evaluation.scoring import COLUMNS, Metric

RESAMPLES = 2000
LEVELS = (0.025, 0.975)
SIGNIFICANCE = 0.05

Table = NDArray[np.float64]
"""Counts [scenes, len(COLUMNS)]."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; ``n`` is what it was divided by.

    ``sign_p``: of a difference between figures with the same denominator, two-sided p of the sign
    test over scenes.
    """

    value: float
    low: float
    high: float
    n: int
    sign_p: float | None = None

    @property
    def beyond_chance(self) -> bool:
        """True if the interval of a difference leaves zero out, and the sign test agrees."""
        outside = self.low > 0 or self.high < 0
        return outside and (self.sign_p is None or self.sign_p < SIGNIFICANCE)

    def as_json(self) -> dict[str, Any]:
        found = {key: round(getattr(self, key), 4) for key in ("value", "low", "high", "n")}
        return found if self.sign_p is None else {**found, "sign_p": float(f"{self.sign_p:.3g}")}


class Bootstrap:
    """Resamples of ``scenes`` scenes, the same ones for every setting."""

    def __init__(self, scenes: int, resamples: int = RESAMPLES) -> None:
        generator = np.random.default_rng(0)
        chances = np.full(scenes, 1 / scenes)
        self._weights = generator.multinomial(scenes, chances, resamples).astype(np.float64)

    def sums(self, values: Table) -> Table:
        """Sums over each resample of ``values`` [scenes, n], [resamples, n]."""
        return self._weights @ values


def estimate(metric: Metric, table: Table, bootstrap: Bootstrap) -> Estimate | None:
    """A metric over all scenes; None where it is not defined."""
    above, below = _parts(metric, table.sum(0))
    if not below:
        return None
    if metric.binary:
        share = float(above / below)
        interval = wilson(share, _effective(*_parts(metric, table)))
        return Estimate(share, *interval, round(float(below)))
    value = float(above / below)
    return _with_percentiles(value, _quotients(metric, table, bootstrap), round(float(below)))


def difference(
    metric: Metric, table: Table, baseline: Table, bootstrap: Bootstrap
) -> Estimate | None:
    """A metric minus its value at the baseline, on the same scenes; None where not defined."""
    above, below = _parts(metric, table.sum(0))
    above_before, below_before = _parts(metric, baseline.sum(0))
    if not below or not below_before:
        return None
    changes = _quotients(metric, table, bootstrap) - _quotients(metric, baseline, bootstrap)
    value = float(above / below - above_before / below_before)
    found = _with_percentiles(value, changes, round(float(below)))
    scenes, scenes_before = _parts(metric, table), _parts(metric, baseline)
    if not np.array_equal(scenes[1], scenes_before[1]):
        return found
    return replace(found, sign_p=sign_test(scenes[0] - scenes_before[0]))


def columns_of(counts: Mapping[str, int]) -> Table:
    """One answer's counts as a row, [columns]."""
    return np.array([counts.get(name, 0) for name in COLUMNS], np.float64)


def _parts(metric: Metric, sums: Table) -> tuple[Table, Table]:
    return sums @ columns_of(metric.above), sums @ columns_of(metric.below)


def _effective(above: Table, below: Table) -> float:
    """The number of independent answers whose share would have the variance of this share.

    Answers of one scene hang together, so it is less than the number of answers where a scene has
    several. If all answers are alike the variance is 0 and says nothing; then it is the number of
    scenes. Both tables are counts by scene.
    """
    total = below.sum()
    share = above.sum() / total
    variance = ((above - share * below) ** 2).sum() / total**2
    if not variance:
        return float((below > 0).sum())
    return float(min(total, share * (1 - share) / variance))


def sign_test(changes: Table) -> float:
    """Two-sided p of as unequal a split of the scenes that changed, if both ways were alike."""
    changed = int((changes != 0).sum())
    fewer = int(min((changes > 0).sum(), (changes < 0).sum()))
    tail: int = sum(math.comb(changed, count) for count in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**changed))


def _quotients(metric: Metric, table: Table, bootstrap: Bootstrap) -> Table:
    """The metric of each resample; NaN where it is not defined."""
    above, below = bootstrap.sums(np.stack(_parts(metric, table), 1)).T
    found: Table = np.full(len(above), math.nan)
    np.divide(above, below, out=found, where=below > 0)
    return found


def _with_percentiles(value: float, resampled: Table, n: int) -> Estimate:
    defined = resampled[~np.isnan(resampled)]
    low, high = np.quantile(defined, LEVELS) if len(defined) else (math.nan, math.nan)
    return Estimate(value, float(low), float(high), n)
