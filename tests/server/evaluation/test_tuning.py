"""Which strength the validation split chooses."""

from __future__ import annotations

import pytest

from saccade_server.evaluation.tuning import Trial, choose

NONE = Trial(chair=0.6, exact=0.9)


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([Trial(0.5, 0.9), Trial(0.4, 0.9), Trial(0.3, 0.87)], 1),  # the best one costs too much
        ([Trial(0.5, 0.88), Trial(0.55, 0.95)], 0),  # two points are allowed
        ([Trial(0.5, 0.89), Trial(0.5, 0.9), Trial(0.5, 0.9)], 1),  # ties: exact, then weaker
        ([Trial(0.1, 0.5), Trial(0.9, 0.7), Trial(0.2, 0.7)], 1),  # none qualifies
        ([Trial(0.7, 0.9)], 0),  # even if all of them hurt
    ],
)
def test_choice(trials: list[Trial], chosen: int) -> None:
    assert choose(trials, NONE) == chosen
