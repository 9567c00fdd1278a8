"""What a strength did to held-out prompts, and which one is taken."""

from __future__ import annotations

import math
import statistics

import pytest

from saccade_server.calibration.judging import Judge, Setting, Trial, choose
from saccade_server.calibration.scoring import Score


def scores(*values: float, right: bool = True) -> list[Score]:
    return [Score(value, right) for value in values]


def test_gain_of_answers() -> None:
    """Classes count the same: one positive weighs as much as three negatives."""
    judge = Judge("answers", [True, False, False, False, True], [2] * 5, scores(-4, -1, -1, -1, -4))
    trial = judge.trial(scores(-1, -1.5, -2, -1, -2))
    positive, negative = [3.0, 2.0], [-0.5, -1.0, 0.0]
    assert trial.gain == pytest.approx((2.5 - 0.5) / 2)
    errors = statistics.variance(positive) / 2 + statistics.variance(negative) / 3
    assert trial.error == pytest.approx(math.sqrt(errors) / 2)
    assert (trial.right, trial.ruins) == (5, None)


def test_gain_of_messages() -> None:
    """A token of positive messages, less one of negative ones; long messages count no more."""
    plain = scores(-10, -20, -10, -20, right=False)
    judge = Judge("messages", [True, True, False, False], [5, 10, 5, 10], plain)
    trial = judge.trial(scores(-8, -16, -12, -28, right=False))
    assert trial.gain == pytest.approx(0.4 + (0.4 + 0.8) / 2)
    assert trial.error == pytest.approx(math.sqrt(0 / 2 + statistics.variance([0.4, 0.8]) / 2))
    assert trial.ruins is None


def test_messages_of_either_class_that_become_less_likely_are_ruin() -> None:
    """The difference grows, but only because the negative ones fall faster."""
    judge = Judge("messages", [True, True, False, False], [1] * 4, scores(-1, -1, -1, -1))
    trial = judge.trial(scores(-2, -2, -9, -9))
    assert trial.gain == pytest.approx(7)
    assert trial.ruins == "positive messages become less likely"


@pytest.mark.parametrize(
    ("count", "lost", "ruins"), [(20, 1, False), (20, 2, True), (19, 1, True), (19, 0, False)]
)
def test_one_right_answer_in_twenty_may_be_lost(count: int, lost: int, ruins: bool) -> None:
    plain = scores(*[-1.0] * 2 * count)
    judge = Judge("answers", [True] * count + [False] * count, [1] * 2 * count, plain)
    after = [*scores(*[-0.5] * (2 * count - lost)), *scores(*[-2.0] * lost, right=False)]
    found = judge.trial(after).ruins
    assert found == ("right answers of the negative class are lost" if ruins else None)


def test_answers_that_were_wrong_cannot_be_lost_nor_make_up_for_it() -> None:
    plain = [*scores(*[-1.0] * 10), *scores(*[-1.0] * 10, right=False)]
    judge = Judge("answers", [True, False] * 10, [1] * 20, plain)
    better = [*scores(*[-0.5] * 9), Score(-3, False), *scores(*[-0.5] * 10)]
    assert judge.trial(better).right == 19
    assert judge.trial(better).ruins == "right answers of the negative class are lost"


def test_kept_answers() -> None:
    plain = scores(-1, -1, -1, -1)
    kept = [*scores(*[-1.0] * 20), *scores(-5, right=False)]
    judge = Judge("answers", [True, True, False, False], [1] * 4, plain, kept)
    better = scores(-0.5, -0.5, -0.5, -0.5)
    assert judge.trial(better).ruins is None
    assert judge.trial(better, kept).ruins is None
    lost = [*scores(*[-1.0] * 2, right=False), *kept[2:]]
    assert judge.trial(better, lost).ruins == "answers that are to be kept are lost"


def test_overflow_is_ruin() -> None:
    judge = Judge("answers", [True, True, False, False], [1] * 4, scores(-1, -1, -1, -1))
    trial = judge.trial(scores(-math.inf, 0, 0, 0))
    assert trial.ruins == "the model's numbers overflow"
    assert choose({Setting(1, 1.0): trial}) is None


def test_the_best_that_ruins_nothing_and_the_weakest_as_good_as_it() -> None:
    trials = {
        Setting(1, 0.5): Trial(0.30, 0.02, 5),
        Setting(2, 0.5): Trial(0.40, 0.05, 5),
        Setting(2, 1.0): Trial(0.47, 0.05, 5),
        Setting(2, 2.0): Trial(0.50, 0.05, 5),
        Setting(2, 3.0): Trial(0.90, 0.05, 5, "it loses"),
        Setting(3, 0.25): Trial(0.46, 0.05, 5),
    }
    assert choose(trials) == Setting(2, 1.0), "of the best residual, within one standard error"


@pytest.mark.parametrize(("gain", "helps"), [(0.31, True), (0.30, False), (-1.0, False)])
def test_three_standard_errors(gain: float, helps: bool) -> None:
    assert (choose({Setting(None, 1.0): Trial(gain, 0.1, 3)}) is not None) is helps


def test_nothing_to_choose_from() -> None:
    assert choose({Setting(1, 1.0): Trial(9.0, 0.1, 3, "it ruins")}) is None


def test_the_weakest_is_nearest_to_0() -> None:
    trials = {Setting(1, value): Trial(1.0, 0.1, 3) for value in (-2.0, -0.5, 1.0)}
    assert choose(trials) == Setting(1, -0.5)
