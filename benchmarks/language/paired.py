"""Means with 95 % intervals, and differences from plain on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from saccade_server.demo.rates import wilson
from saccade_server.evaluation.statistics import LEVELS, Bootstrap, Estimate, sign_test


def mean(values: Sequence[float]) -> Estimate:
    """With the interval of a bootstrap over prompts."""
    found = np.asarray(values, np.float64)
    resampled = Bootstrap(len(found)).sums(found[:, None]) / len(found)
    return Estimate(float(found.mean()), *map(float, np.quantile(resampled, LEVELS)), len(found))


def share(values: Sequence[bool]) -> Estimate:
    """With Wilson's interval."""
    found = sum(values) / len(values)
    return Estimate(found, *wilson(found, len(values)), len(values))


def difference(values: Sequence[float], plain: Sequence[float]) -> Estimate:
    """Mean change, prompt by prompt, with the two-sided p of an exact sign test."""
    changes = np.asarray(values, np.float64) - np.asarray(plain, np.float64)
    return replace(mean(changes.tolist()), sign_p=sign_test(changes))
