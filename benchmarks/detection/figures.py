"""Areas under ROC curves with intervals, and rates of thresholds found on other scenes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from detection.answers import Judged
from saccade_server.detectors.anatomy_of_a_lie import FEATURES, surprisal
from saccade_server.detectors.calibrating import fit_density
from saccade_server.detectors.roc import Side, TooFewAnswers, area, rates, threshold

SIDES: Mapping[str, Side] = {
    "svar": "low",
    "vhd": "low",
    "vas": "low",
    "anatomy_of_a_lie": "high",
    "evidence": "high",
    "conflict": "low",
    "decision": "high",
    "sinks": "high",
    "waad": "high",
    "fai": "low",
    "likelihood": "low",
}
"""Measure -> the side that is suspicious, fixed before anything was measured."""

MOST_FLAGGED = 0.05
"""Of the right answers that a threshold is found on."""


def figures(found: Sequence[Judged], calibration: Sequence[Judged]) -> dict[str, Any]:
    """By measure: its area, and what a threshold that ``calibration`` gave does to ``found``."""
    with_density(found, calibration)
    made = {}
    for name, side in SIDES.items():
        kept = _kept(found, name)
        if not kept:
            continue
        scores, wrong = _arrays(kept, name)
        try:
            measured = asdict(area(scores, wrong, [one.scene for one in kept], side))
        except TooFewAnswers:
            continue
        made[name] = {
            "side": side,
            "without_score": len(found) - len(kept),
            **{key: _round(value) for key, value in measured.items()},
            "threshold": _threshold(scores, wrong, _kept(calibration, name), name, side),
        }
    return made


def with_density(found: Sequence[Judged], calibration: Sequence[Judged]) -> None:
    """Add surprisals under the density of right answers of ``calibration``."""
    right = [_vector(one) for one in calibration if not one.wrong]
    try:
        density = fit_density(np.array([v for v in right if not np.isnan(v).any()]).reshape(-1, 3))
    except TooFewAnswers:
        return
    for one in (*found, *calibration):
        vector = _vector(one)
        if not np.isnan(vector).any():
            one.scores["anatomy_of_a_lie"] = float(surprisal(vector[None], density)[0])


def _vector(one: Judged) -> Any:
    return np.array([one.scores.get(name, math.nan) for name in FEATURES])


def _threshold(
    scores: Any, wrong: Any, calibration: Sequence[Judged], name: str, side: Side
) -> dict[str, Any] | None:
    """The line, and the shares that it flags of other scenes' right and wrong answers."""
    if not calibration:
        return None
    try:
        line = threshold(*_arrays(calibration, name), side, MOST_FLAGGED)
    except TooFewAnswers:
        return None
    judged = rates(scores, wrong, side, line.value)
    return {
        "value": _round(line.value),
        "false_positive_rate": _round(judged.false_positive_rate),
        "true_positive_rate": _round(judged.true_positive_rate),
    }


def _kept(judged: Sequence[Judged], name: str) -> list[Judged]:
    return [one for one in judged if not math.isnan(one.scores.get(name, math.nan))]


def _arrays(judged: Sequence[Judged], name: str) -> tuple[Any, Any]:
    return np.array([one.scores[name] for one in judged]), np.array([one.wrong for one in judged])


def _round(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
