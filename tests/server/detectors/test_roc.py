"""Areas and thresholds against counting."""

from __future__ import annotations

import numpy as np
import pytest

from saccade_server.detectors.roc import LEAST, TooFewAnswers, area, auc, threshold
from saccade_server.detectors.svar import SVAR
from saccade_server.detectors.waad import WAAD

RNG = np.random.default_rng(2)
SCORES = RNG.integers(0, 12, 90) / 4  # many ties
LABELS = RNG.random(90) < 0.2 + 0.2 * SCORES


def test_an_area_counts_pairs_and_halves_ties() -> None:
    pairs = [
        (high > low) + 0.5 * (high == low) for high in SCORES[LABELS] for low in SCORES[~LABELS]
    ]
    assert auc(SCORES, LABELS) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(SCORES, np.zeros(90, bool)))


def test_the_low_side_is_the_mirror_of_the_high_one() -> None:
    groups = list(range(90))
    high, low = (
        area(SCORES * sign, LABELS, groups, side) for sign, side in ((1, "high"), (-1, "low"))
    )
    assert high == low
    assert high.low < high.value < high.high
    assert (high.positives, high.negatives) == (LABELS.sum(), (~LABELS).sum())


def test_groups_are_resampled_whole() -> None:
    """Ten copies of one scene's answers say no more than one."""
    few, labels, names = SCORES[:30], LABELS[:30], list(range(30))
    once = area(few, labels, names, "high")
    copied = area(np.tile(few, 10), np.tile(labels, 10), names * 10, "high")
    assert (copied.low, copied.high) == (once.low, once.high)
    apart = area(np.tile(few, 10), np.tile(labels, 10), list(range(300)), "high")
    assert apart.high - apart.low < 0.6 * (once.high - once.low)


def test_an_area_of_one_class_is_refused() -> None:
    with pytest.raises(TooFewAnswers):
        area(SCORES, np.ones(90, bool), list(range(90)), "high")


@pytest.mark.parametrize("side", ["low", "high"])
@pytest.mark.parametrize("most", [0.0, 0.05, 0.2])
def test_a_threshold_flags_no_more_right_answers_than_it_may(side, most) -> None:
    found = threshold(SCORES, LABELS, side, most)
    detector = SVAR(threshold=found.value) if side == "low" else WAAD(threshold=found.value)
    flagged = np.array([detector.flagged(score) for score in SCORES])
    assert flagged[~LABELS].mean() == found.false_positive_rate <= most
    assert flagged[LABELS].mean() == found.true_positive_rate
    # The next line would flag too many.
    beyond = SCORES[~LABELS]
    next_line = beyond <= found.value if side == "low" else beyond >= found.value
    assert next_line.mean() > most


def test_a_threshold_needs_answers_of_both_kinds() -> None:
    labels = np.zeros(90, bool)
    labels[: LEAST - 1] = True
    with pytest.raises(TooFewAnswers, match=f"{LEAST} right and {LEAST} wrong"):
        threshold(SCORES, labels, "low")


def test_without_a_threshold_or_score_nothing_is_flagged() -> None:
    assert SVAR().flagged(0.1) is None
    assert SVAR(threshold=0.5).flagged(None) is None
    assert SVAR(threshold=0.5).flagged(0.5) is False
