"""Thresholds and densities of answers whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from saccade_interventions.artifacts import read_artifact, write_artifact
from saccade_server.detectors.anatomy_of_a_lie import surprisal
from saccade_server.detectors.calibrating import (
    calibrate,
    calibrate_density,
    fit_density,
    is_right,
)
from saccade_server.detectors.roc import TooFewAnswers

RNG = np.random.default_rng(4)
WRONG = RNG.random(400) < 0.3
SCORES = RNG.normal(size=400) - 1.5 * WRONG
FEATURES = np.where(WRONG[:, None], RNG.normal(3, 1, (400, 3)), RNG.normal(0, 1, (400, 3)))


def test_a_threshold_is_judged_on_answers_that_it_was_not_found_on() -> None:
    found = calibrate(SCORES, WRONG, "low", 0.1)
    assert found.found.false_positive_rate <= 0.1
    assert found.held_out.value == found.found.value
    counts = (found.found, found.held_out)
    assert sum(part.positives + part.negatives for part in counts) == 400
    assert found.held_out.positives + found.held_out.negatives == 120
    assert 0.02 < found.held_out.false_positive_rate < 0.25  # of 84 or so right answers
    assert found.held_out.true_positive_rate > 0.3
    assert 0.8 < found.area.low < found.area.value < found.area.high < 0.92


def test_a_density_finds_what_is_unlike_the_right_answers() -> None:
    found = calibrate_density(FEATURES, WRONG, 0.05)
    assert found.density is not None
    assert found.components == 1
    assert found.area.value > 0.95
    assert found.held_out.true_positive_rate > 0.8
    assert found.area.positives + found.area.negatives == 260  # without those it was fitted on


def test_the_density_survives_the_way_through_an_artifact() -> None:
    density = fit_density(np.vstack([FEATURES[~WRONG], FEATURES[~WRONG] * 0.1 + 9]))
    assert len(density["weights"]) >= 2
    stored = read_artifact(write_artifact("density", "sha256:" + "0" * 64, density))
    expected = surprisal(FEATURES, density)
    assert surprisal(FEATURES, stored.tensors) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_feature_that_never_varies_is_left_as_it_is() -> None:
    flat = FEATURES[~WRONG] * [0, 1, 1]
    density = fit_density(flat)
    assert density["scale"][0] == 1
    assert np.isfinite(surprisal(flat, density)).all()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_right_answers_make_no_density(count: int) -> None:
    with pytest.raises(TooFewAnswers, match="a density"):
        fit_density(FEATURES[:count])


def test_too_few_wrong_answers_make_no_threshold() -> None:
    with pytest.raises(TooFewAnswers, match="a threshold needs 8 right and 8 wrong"):
        calibrate(SCORES[:20], WRONG[:20], "low", 0.05)


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        ("Yes.", "yes", True),
        ("Yes, there is one.", "Yes.", True),
        ("Yesterday", "yes", False),
        ("No.", "Yes.", False),
        ("There is a red circle.", "There is a red circle and a blue square.", False),
        ("There is a red circle and more.", "there is a red circle", True),
        ("", "Yes.", False),
        ("Yes.", "...", False),
    ],
)
def test_an_answer_is_right_if_it_begins_with_the_label(answer, label, right) -> None:
    assert is_right(answer, label) is right
