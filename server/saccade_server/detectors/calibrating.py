"""From answers that are known to be right or wrong to a threshold, and to a density of right ones.

The answers are shuffled once and divided. A threshold is found on seven of ten and judged on the
rest, which nothing was chosen by. Where a density is fitted, half of the seven make it, its right
answers alone, and the other half the threshold: what a density was fitted on surprises it less than
what will come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade_server.detectors.anatomy_of_a_lie import surprisal
from saccade_server.detectors.mixture import TooFewSamples, fit
from saccade_server.detectors.roc import (
    Area,
    Labels,
    Side,
    Threshold,
    TooFewAnswers,
    area,
    rates,
    threshold,
)
from saccade_server.detectors.traced import Floats

HELD_OUT = 0.3
MOST_COMPONENTS = 5


@dataclass(frozen=True)
class Calibrated:
    """What was found. ``held_out`` are the rates of the same line on answers kept apart.

    ``density`` are the tensors of an artifact, if one was fitted; ``components`` how many
    components it has.
    """

    found: Threshold
    held_out: Threshold
    area: Area
    density: Mapping[str, NDArray[Any]] | None = None

    @property
    def components(self) -> int:
        return 0 if self.density is None else len(self.density["weights"])


def calibrate(scores: Floats, wrong: Labels, side: Side, most: float, seed: int = 0) -> Calibrated:
    """A threshold that flags at most ``most`` of the right answers it is found on.

    ``area`` is that of all answers.

    Raises:
        TooFewAnswers: of right or wrong answers, in one of the parts.
    """
    pool, kept = _parts(len(scores), seed)
    line = threshold(scores[pool], wrong[pool], side, most)
    judged = rates(scores[kept], wrong[kept], side, line.value)
    return Calibrated(line, judged, area(scores, wrong, range(len(scores)), side))


def calibrate_density(features: Floats, wrong: Labels, most: float, seed: int = 0) -> Calibrated:
    """A density of the right answers' features [n, 3], and a threshold of the surprisal.

    As many components as Bayes' information criterion prefers, up to :data:`MOST_COMPONENTS`.
    ``area`` is that of the answers the density was not fitted on.

    Raises:
        TooFewAnswers: of right or wrong answers, in one of the parts.
    """
    pool, kept = _parts(len(features), seed)
    half = len(pool) // 2
    fitted, lined = pool[:half], pool[half:]
    density = fit_density(features[fitted][~wrong[fitted]], seed)
    scores = surprisal(features, density)
    line = threshold(scores[lined], wrong[lined], "high", most)
    judged = rates(scores[kept], wrong[kept], "high", line.value)
    rest = np.concatenate([lined, kept])
    return Calibrated(
        line, judged, area(scores[rest], wrong[rest], range(len(rest)), "high"), density
    )


def fit_density(features: Floats, seed: int = 0) -> dict[str, NDArray[Any]]:
    """The tensors of a density of feature vectors [n, 3], standardised first.

    Raises:
        TooFewAnswers: there are not enough for one component.
    """
    if not len(features):
        raise TooFewAnswers("a density needs right answers; there are none")
    center, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    standard = (features - center) / scale
    fits = []
    for components in range(1, MOST_COMPONENTS + 1):
        try:
            fits.append(fit(standard, components, seed=seed))
        except TooFewSamples as error:
            if not fits:
                raise TooFewAnswers(f"a density: {error}") from None
    best = min(fits, key=lambda mixture: mixture.bic(standard))
    return {**vars(best), "center": center, "scale": scale}


def is_right(answer: str, label: str) -> bool:
    """Whether an answer begins with the label's words; case and punctuation do not count."""
    said, wanted = _words(answer), _words(label)
    return bool(wanted) and said[: len(wanted)] == wanted


def _words(text: str) -> Sequence[str]:
    kept = "".join(letter if letter.isalnum() else " " for letter in text.lower())
    return kept.split()


def _parts(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The answers that are calibrated on, and those kept apart."""
    order = np.random.default_rng(seed).permutation(count)
    cut = count - int(HELD_OUT * count)
    return order[:cut], order[cut:]
