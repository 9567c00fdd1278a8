"""How far two answers are apart."""

import pytest

from saccade_server.engine.request import TokenLogprobs
from saccade_server.trial import Trial, largest_change


def trial(*places: tuple[int, dict[int, float]]) -> Trial:
    logprobs = tuple(TokenLogprobs(t, top[t], tuple(top.items())) for t, top in places)
    return Trial(tuple(entry.token for entry in logprobs), logprobs, None)


def test_changes_count_up_to_the_first_other_token() -> None:
    plain = trial((1, {1: -0.1, 2: -2.0}), (3, {3: -0.5, 4: -1.0}), (5, {5: -0.1}))
    assert largest_change(plain, plain) == 0
    later = trial((1, {1: -0.1, 2: -2.0}), (4, {4: -0.4, 3: -0.75}), (5, {5: -9.0}))
    assert largest_change(plain, later) == pytest.approx(0.6)
    other = trial((7, {7: -0.1}))
    assert largest_change(plain, other) == float("inf")
    excluded = trial((1, {1: -0.1, 2: -float("inf")}))
    assert largest_change(plain, excluded) == float("inf")
    assert largest_change(excluded, excluded) == 0
