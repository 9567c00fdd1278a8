"""How well a score tells suspicious answers from others, and where to draw the line.

The area under the ROC curve is the chance that a random positive scores higher than a random
negative, ties counting half. Its interval is a percentile bootstrap over groups (scenes): scores of
one scene stand or fall together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from saccade_server.detectors.traced import Floats

RESAMPLES = 2000
LEVELS = (0.025, 0.975)
LEAST = 8
"""Of answers on either side, below which no threshold is made."""

Labels = NDArray[np.bool_]
Side = Literal["low", "high"]


class TooFewAnswers(ValueError):
    """There are not enough right or wrong answers."""


@dataclass(frozen=True)
class Area:
    """An area under the curve with its 95 % interval, and of how many it is."""

    value: float
    low: float
    high: float
    positives: int
    negatives: int


@dataclass(frozen=True)
class Threshold:
    """A line, the share of right answers that it flags, and of wrong ones, each with its count."""

    value: float
    false_positive_rate: float
    true_positive_rate: float
    negatives: int
    positives: int


def auc(scores: Floats, labels: Labels) -> float:
    """Area under the curve of scores [n]; NaN without positives or negatives."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return math.nan
    above = mean_ranks(scores)[labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def mean_ranks(scores: Floats) -> Floats:
    """Ranks from 1; equal scores share the mean of theirs."""
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[which]
    return ranks


def area(
    scores: Floats,
    labels: Labels,
    groups: Sequence[Hashable],
    side: Side,
    resamples: int = RESAMPLES,
) -> Area:
    """The area, with the suspicious side on top; ``groups`` are resampled whole.

    Raises:
        TooFewAnswers: there are no positives, or no negatives.
    """
    turned = -scores if side == "low" else scores
    positives = int(labels.sum())
    if not 0 < positives < len(labels):
        raise TooFewAnswers("an area needs right and wrong answers")
    names = {name: at for at, name in enumerate(dict.fromkeys(groups))}
    of_group = np.array([names[name] for name in groups])
    members = [np.flatnonzero(of_group == at) for at in range(len(names))]
    generator = np.random.default_rng(0)
    found = []
    for _ in range(resamples):
        chosen = generator.integers(len(members), size=len(members))
        drawn = np.concatenate([members[at] for at in chosen])
        found.append(auc(turned[drawn], labels[drawn]))
    low, high = np.nanquantile(found, LEVELS)
    value = auc(turned, labels)
    return Area(value, float(low), float(high), positives, len(labels) - positives)


def threshold(scores: Floats, labels: Labels, side: Side, most: float = 0.05) -> Threshold:
    """The line that flags as many as it can while at most ``most`` of the right answers are.

    Scores strictly beyond the line are flagged, as :meth:`Detector.flagged` does. On the answers
    that it was found on the rate is at most ``most``; on others it varies.

    Raises:
        TooFewAnswers: fewer than :data:`LEAST` right or wrong ones.
    """
    right, wrong = scores[~labels], scores[labels]
    if min(len(right), len(wrong)) < LEAST:
        raise TooFewAnswers(
            f"a threshold needs {LEAST} right and {LEAST} wrong answers; there are {len(right)} "
            f"and {len(wrong)}"
        )
    allowed = int(most * len(right))
    ordered = np.sort(right) if side == "low" else -np.sort(-right)
    line = float(ordered[allowed])
    return rates(scores, labels, side, line)


def rates(scores: Floats, labels: Labels, side: Side, line: float) -> Threshold:
    """What a line flags; a rate of none is NaN."""
    flagged = scores < line if side == "low" else scores > line
    right, wrong = flagged[~labels], flagged[labels]
    return Threshold(line, _share(right), _share(wrong), len(right), len(wrong))


def _share(flagged: Labels) -> float:
    return float(flagged.mean()) if len(flagged) else math.nan
