"""The policy of rejecting candidates, without a model."""

from itertools import repeat

import numpy as np
import pytest
from msgspec.structs import replace

from saccade_interventions.rules import SaliencyRule
from saccade_server.engine.rules.acceptance import Acceptance, Candidate, descending, drawn

RULE = SaliencyRule(layers=(0,), candidates=4, draws=3, alpha=0.6, window=5, warmup=1)
PAPER = replace(RULE, normalisation="mean", history="accepted", fallback="most_salient")


def candidate(token, saliency=0.0, weight=0.25, logprob=-1.0, evidence=True):
    return Candidate(token, weight, logprob, saliency, evidence)


def accepting(*history, rule=RULE, ends=()):
    state = Acceptance(rule, ends)
    state.history.extend(history)
    state.noted = len(history)
    return state


def choose(state, *pool, keys=3):
    choice = state.choose(list(pool), iter(pool), keys)
    return choice.candidate.token, choice.draws, choice.rejections, choice.fallback


def test_the_worked_example():
    """sgrs.md, section 8: the threshold is .18, c1 is accepted, c2 rejected."""
    state = accepting(0.40, 0.30, 0.20, 0.35, 0.25, rule=PAPER)
    assert state.threshold == pytest.approx(0.18)
    c1, c2 = candidate(1, 0.42290765313), candidate(2, 0.07103701401)
    assert choose(state, c2, c1) == (1, 2, 1, False)
    assert list(state.history) == [0.30, 0.20, 0.35, 0.25, 0.42290765313]


def test_a_saliency_at_the_threshold_is_enough():
    state = accepting(0.5, rule=replace(PAPER, alpha=1.0))
    assert choose(state, candidate(1, 0.5)) == (1, 1, 0, False)


def test_the_cosine_of_a_row_does_not_fall_with_the_length_of_the_answer():
    """Saliency spread evenly over J, and none elsewhere, is 1 whatever the size of J."""
    for keys in (1, 4, 100):
        state = accepting(1.0, rule=replace(RULE, alpha=1.0))
        row = np.full(keys, 0.3)
        even = candidate(1, float((row / np.linalg.norm(row)).mean()) + 1e-12)
        assert choose(state, even, keys=keys) == (1, 1, 0, False)
        assert list(state.history) == pytest.approx([1.0, 1.0])
    mean = accepting(1.0, rule=PAPER)
    assert choose(mean, candidate(1, 0.1), candidate(2, 0.11), keys=100) == (2, 2, 2, True)


def test_after_the_last_draw_the_likeliest_is_taken_and_noted():
    """Whatever the order of the draws."""
    pool = [candidate(t, s, weight=w) for t, s, w in ((1, 0.2, 0.1), (2, 0.1, 0.6), (3, 0.15, 0.3))]
    state = accepting(1.0)
    assert choose(state, *pool, keys=4) == (2, 3, 3, True)
    assert list(state.history) == [1.0, 0.2], "0.1 sqrt(4)"


def test_it_can_be_the_most_salient():
    """Of all candidates, also of those that were never drawn."""
    pool = [candidate(t, s) for t, s in ((1, 0.1), (2, 0.15), (3, 0.2), (4, 0.25))]
    state = accepting(1.0, rule=replace(RULE, fallback="most_salient"))
    assert choose(state, *pool, keys=4) == (4, 3, 3, True)
    assert list(state.history) == [1.0, 0.5], "0.25 sqrt(4)"
    assert choose(state, *pool[:2], keys=4) == (2, 2, 2, True)  # fewer candidates than draws
    assert list(state.history) == [1.0, 0.5, 0.3]


def test_what_it_fell_back_to_can_be_left_out_of_the_history():
    state = accepting(1.0, rule=replace(RULE, history="accepted"))
    assert choose(state, candidate(1, 0.2), keys=4) == (1, 1, 1, True)
    assert list(state.history) == [1.0]


def test_a_history_of_what_was_chosen_cannot_lock_up():
    """If all saliencies fall for good, the threshold follows them; otherwise it never does."""
    fallbacks = dict.fromkeys(("chosen", "accepted"), 0)
    for kept in fallbacks:
        state = accepting(*[1.0] * 5, rule=replace(RULE, history=kept))
        for _ in range(40):
            fallbacks[kept] += choose(state, candidate(1, 0.1), keys=1)[3]
    assert fallbacks == {"chosen": 5, "accepted": 40}


def test_nothing_is_tested_before_there_is_anything_to_compare():
    state = accepting()
    assert choose(state, candidate(1, 0.7), keys=0) == (1, 1, 0, False)
    assert not state.history, "without keys there is no saliency"
    assert choose(state, candidate(2, 0.4), keys=1) == (2, 1, 0, False)
    assert list(state.history) == [0.4]
    # Keys may be missing later, too: then there is no test.
    assert choose(state, candidate(3, 0.0), keys=0) == (3, 1, 0, False)


def test_nothing_is_tested_during_the_warm_up():
    """The first saliencies are noted, but few of them are no mean to be compared with."""
    rule = replace(RULE, warmup=3, window=2)
    state = accepting(rule=rule)
    for saliency in (1.0, 0.1, 0.8):
        assert state.threshold is None
        assert choose(state, candidate(1, saliency), keys=1) == (1, 1, 0, False)
    assert state.threshold == pytest.approx(0.6 * 0.45), "the window may be shorter"
    assert choose(state, candidate(1, 0.2), candidate(2, 0.3), keys=1) == (2, 2, 1, False)


def test_ends_and_special_tokens_are_never_rejected():
    rule = replace(RULE, exempt=(7,))
    for token in (7, 8):
        state = accepting(1.0, rule=rule, ends=(8,))
        assert choose(state, candidate(token, 0.01), keys=1) == (token, 1, 0, False)
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
