"""Intervals against known values, and pairs on the same scenes."""

from __future__ import annotations

import numpy as np
import pytest

from saccade_server.evaluation.scoring import BY_NAME, COLUMNS
from saccade_server.evaluation.statistics import Bootstrap, columns_of, difference, estimate


def table(*rows: dict[str, int]) -> np.ndarray:
    return np.array([columns_of(row) for row in rows])


def captions(hallucinating: int, total: int) -> np.ndarray:
    return table(*({"captions": 1, "hallucinates": int(i < hallucinating)} for i in range(total)))


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: score interval
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_shares_have_wilson_intervals(hits: int, total: int, low: float, high: float) -> None:
    found = estimate(BY_NAME["CHAIR_s"], captions(hits, total), Bootstrap(total, 10))
    assert found is not None
    assert found.n == total
    assert found.value == hits / total
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def asked(*right: int, questions: int = 1) -> np.ndarray:
    """Scenes with so many right answers to so many questions each."""
    return table(*({"questions": questions, "right": count} for count in right))


def test_answers_that_fall_together_count_once() -> None:
    """Two answers a scene, always alike: the interval is that of half as many."""
    alike = asked(*[2] * 30, *[0] * 10, questions=2)
    found = estimate(BY_NAME["accuracy"], alike, Bootstrap(40, 10))
    single = estimate(BY_NAME["accuracy"], asked(*[1] * 30, *[0] * 10), Bootstrap(40, 10))
    assert found is not None
    assert single is not None
    assert (found.low, found.high) == pytest.approx((single.low, single.high))
    assert (found.value, found.n, single.n) == (0.75, 80, 40)


def test_independent_answers_about_a_scene_all_count() -> None:
    right = np.random.default_rng(4).binomial(2, 0.7, 4000)
    found = estimate(BY_NAME["accuracy"], asked(*right, questions=2), Bootstrap(4000, 10))
    assert found is not None
    half = 1.96 * (0.7 * 0.3 / 8000) ** 0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.04)


def test_with_all_answers_alike_a_scene_counts_once() -> None:
    found = estimate(BY_NAME["accuracy"], asked(*[2] * 20, questions=2), Bootstrap(20, 10))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((1 - 0.1611, 1), abs=5e-5)


@pytest.mark.parametrize(
    ("better", "worse", "p", "counts"),
    # the exact binomial test with probability 1/2
    [(4, 0, 0.125, False), (5, 0, 0.0625, False), (6, 0, 0.03125, True), (9, 2, 0.06543, False)],
)
def test_few_scenes_of_one_sign_are_chance(better: int, worse: int, p: float, counts: bool) -> None:
    before = asked(*[0] * better, *[1] * worse, *[1] * 109)
    after = asked(*[1] * better, *[0] * worse, *[1] * 109)
    found = difference(BY_NAME["accuracy"], after, before, Bootstrap(len(before)))
    assert found is not None
    assert found.low > 0, "what the interval alone would say"
    assert found.sign_p == pytest.approx(p, abs=1e-5)
    assert found.beyond_chance is counts


def test_a_metric_without_a_denominator_is_not_defined() -> None:
    counts = table({"questions": 1, "right": 1}, {"questions": 1})
    assert estimate(BY_NAME["precision"], counts, Bootstrap(2, 10)) is None
    assert difference(BY_NAME["precision"], counts, counts, Bootstrap(2, 10)) is None


def test_the_bootstrap_resamples_whole_scenes() -> None:
    """The mean of n values has the bootstrap standard error std / sqrt(n)."""
    generator = np.random.default_rng(1)
    words = generator.integers(5, 30, 400)
    counts = table(*({"captions": 1, "words": int(count)} for count in words))
    found = estimate(BY_NAME["words"], counts, Bootstrap(400))
    assert found is not None
    assert found.value == pytest.approx(words.mean())
    half = 1.96 * words.std() / 20
    assert (found.low, found.high) == pytest.approx(
        (words.mean() - half, words.mean() + half), abs=0.15 * half
    )


def test_a_quotient_of_sums_is_no_mean_of_quotients() -> None:
    counts = table(
        {"mentions": 1, "absent_mentions": 1},
        {"mentions": 9, "absent_mentions": 0},
        {"mentions": 0},
    )
    found = estimate(BY_NAME["CHAIR_i"], counts, Bootstrap(3, 200))
    assert found is not None
    assert found.value == 0.1
    assert found.n == 10


def test_pairs_cancel_what_a_scene_gives_to_both() -> None:
    """Scenes differ wildly, the settings by exactly one word a caption: no spread is left."""
    words = np.random.default_rng(2).integers(5, 300, 50)
    before = table(*({"captions": 1, "words": int(count)} for count in words))
    after = table(*({"captions": 1, "words": int(count) + 1} for count in words))
    found = difference(BY_NAME["words"], after, before, Bootstrap(50, 300))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    assert found.beyond_chance


def test_a_difference_by_chance_includes_zero() -> None:
    flips = np.random.default_rng(3)
    before = captions(50, 100)
    after = before.copy()
    column = COLUMNS.index("hallucinates")
    swapped = flips.permutation(100)[:4]
    after[swapped, column] = 1 - after[swapped, column]
    found = difference(BY_NAME["CHAIR_s"], after, before, Bootstrap(100))
    assert found is not None
    assert not found.beyond_chance
    same = difference(BY_NAME["CHAIR_s"], before, before, Bootstrap(100))
    assert same is not None
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_difference_that_is_there_is_found() -> None:
    """McNemar's case: 30 scenes change one way and 5 the other, of 200."""
    before, after = captions(0, 200), captions(30, 200)
    before[100:105, COLUMNS.index("hallucinates")] = 1
    found = difference(BY_NAME["CHAIR_s"], after, before, Bootstrap(200))
    assert found is not None
    assert found.value == pytest.approx(25 / 200)
    standard_error = (35 - 25**2 / 200) ** 0.5 / 200
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard_error, rel=0.12)
    assert found.beyond_chance
