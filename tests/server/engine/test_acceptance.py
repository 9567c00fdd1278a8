"""The policy of rejecting candidates, without a model."""

from itertools import repeat

import numpy as np
import pytest

from saccade_interventions.rules import SaliencyRule
from saccade_server.engine.acceptance import Acceptance, Candidate, descending, drawn

RULE = SaliencyRule(layers=(0,), candidates=4, draws=3, alpha=0.6, window=5)


def candidate(token, saliency=0.0, weight=0.25, logprob=-1.0, evidence=True):
    return Candidate(token, weight, logprob, saliency, evidence)


def accepting(*history, rule=RULE, ends=()):
    state = Acceptance(rule, ends)
    state.history.extend(history)
    return state


def choose(state, *pool, keys=3):
    choice = state.choose(list(pool), iter(pool), keys)
    return choice.candidate.token, choice.draws, choice.rejections, choice.fallback


def test_the_worked_example():
    """sgrs.md, section 8: the threshold is .18, c1 is accepted, c2 rejected."""
    state = accepting(0.40, 0.30, 0.20, 0.35, 0.25)
    assert state.threshold == pytest.approx(0.18)
    c1, c2 = candidate(1, 0.42290765313), candidate(2, 0.07103701401)
    assert choose(state, c2, c1) == (1, 2, 1, False)
    assert list(state.history) == [0.30, 0.20, 0.35, 0.25, 0.42290765313]


def test_a_saliency_at_the_threshold_is_enough():
    state = accepting(0.5, rule=SaliencyRule((0,), 4, 3, 1.0, 5))
    assert choose(state, candidate(1, 0.5)) == (1, 1, 0, False)


def test_after_the_last_draw_the_most_salient_is_taken_and_not_noted():
    """Of all candidates, also of those that were never drawn."""
    state = accepting(1.0)
    pool = [candidate(t, s) for t, s in ((1, 0.1), (2, 0.3), (3, 0.2), (4, 0.5))]
    assert choose(state, *pool) == (4, 3, 3, True)
    assert list(state.history) == [1.0]
    assert choose(state, *pool[:2]) == (2, 2, 2, True)  # fewer candidates than draws


def test_nothing_is_tested_before_there_is_anything_to_compare():
    state = accepting()
    assert choose(state, candidate(1, 0.7), keys=0) == (1, 1, 0, False)
    assert not state.history, "without keys there is no saliency"
    assert choose(state, candidate(2, 0.4), keys=1) == (2, 1, 0, False)
    assert list(state.history) == [0.4]
    # Keys may be missing later, too: then there is no test.
    assert choose(state, candidate(3, 0.0), keys=0) == (3, 1, 0, False)


def test_ends_and_special_tokens_are_never_rejected():
    rule = SaliencyRule((0,), 4, 3, 0.6, 5, exempt=(7,))
    for token in (7, 8):
        state = accepting(1.0, rule=rule, ends=(8,))
        assert choose(state, candidate(token, 0.01)) == (token, 1, 0, False)
        assert list(state.history) == [1.0, 0.01], "what was accepted counts"


def test_a_certain_candidate_without_gradient_is_accepted_and_not_noted():
    state = accepting(1.0)
    sure = candidate(1, 0.0, logprob=-1e-7, evidence=False)
    assert choose(state, sure) == (1, 1, 0, False)
    assert list(state.history) == [1.0]
    unsure = candidate(1, 0.0, logprob=-1e-5, evidence=False)
    assert choose(state, unsure, candidate(2, 0.9)) == (2, 2, 1, False)


def test_greedy_order_is_by_probability():
    pool = [candidate(1, weight=0.2), candidate(2, weight=0.5), candidate(3, weight=0.3)]
    assert [item.token for item in descending(pool)] == [2, 3, 1]


def test_draws_are_without_replacement_and_renormalised():
    """Against the definition: probability of each order of two of three."""
    pool = [candidate(1, weight=0.3), candidate(2, weight=0.1), candidate(3, weight=0.2)]
    rng = np.random.default_rng(0)
    count = {}
    for _ in range(20000):
        order = drawn(pool, iter(rng.random, None))
        key = next(order).token, next(order).token
        count[key] = count.get(key, 0) + 1
    total = {1: 0.3, 2: 0.1, 3: 0.2}
    for (first, second), times in count.items():
        wanted = total[first] / 0.6 * total[second] / (0.6 - total[first])
        assert times / 20000 == pytest.approx(wanted, abs=0.012)
    assert len(count) == 6


def test_every_candidate_comes_once_whatever_the_numbers():
    pool = [candidate(t) for t in range(4)]
    for number in (0.0, 0.999999999999):
        assert sorted(item.token for item in drawn(pool, repeat(number))) == [0, 1, 2, 3]
