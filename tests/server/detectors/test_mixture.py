"""The mixture against its formulas, one sample and one component at a time."""

from __future__ import annotations

import numpy as np
import pytest

from saccade_server.detectors.mixture import RIDGE, Mixture, TooFewSamples, fit, step

RNG = np.random.default_rng(5)
SAMPLES = np.vstack(
    [RNG.normal([0, 0, 0], [1, 0.5, 0.2], (120, 3)), RNG.normal([6, -3, 1], 0.4, (60, 3))]
)


def density(x, mixture: Mixture) -> float:
    total = 0.0
    for weight, mean, covariance in zip(
        mixture.weights, mixture.means, mixture.covariances, strict=True
    ):
        apart = x - mean
        square = apart @ np.linalg.inv(covariance) @ apart
        total += weight * np.exp(-square / 2) / np.sqrt(np.linalg.det(2 * np.pi * covariance))
    return total


def test_surprisal_is_minus_the_log_of_the_density() -> None:
    roots = RNG.normal(size=(3, 3, 3))
    covariances = np.einsum("kij,klj->kil", roots, roots) + 0.1 * np.eye(3)
    mixture = Mixture(np.array([0.2, 0.5, 0.3]), RNG.normal(size=(3, 3)), covariances)
    expected = [-np.log(density(x, mixture)) for x in SAMPLES[:9]]
    assert mixture.surprisal(SAMPLES[:9]) == pytest.approx(expected, rel=1e-10)
    far = mixture.surprisal(np.full((1, 3), 1e3))
    assert np.isfinite(far).all()
    assert far > 700  # where the density itself is zero in float64


def test_a_round_is_that_of_the_formulas() -> None:
    before = Mixture(np.array([0.5, 0.5]), SAMPLES[[3, 150]], np.array([np.eye(3), 2 * np.eye(3)]))
    shares = np.array(
        [
            [
                density(x, Mixture(*(part[k : k + 1] for part in vars(before).values())))
                for k in range(2)
            ]
            for x in SAMPLES
        ]
    )
    shares /= shares.sum(1, keepdims=True)
    after = step(SAMPLES, before)
    for k in range(2):
        own = shares[:, k]
        mean = (own[:, None] * SAMPLES).sum(0) / own.sum()
        covariance = sum(
            w * np.outer(x - mean, x - mean) for w, x in zip(own, SAMPLES, strict=True)
        )
        assert after.weights[k] == pytest.approx(own.mean())
        assert after.means[k] == pytest.approx(mean)
        assert after.covariances[k] == pytest.approx(covariance / own.sum() + RIDGE * np.eye(3))
    assert after.surprisal(SAMPLES).sum() < before.surprisal(SAMPLES).sum()


def test_two_clusters_are_found_and_bic_prefers_two() -> None:
    found = fit(SAMPLES, 2)
    order = np.argsort(found.means[:, 0])
    assert found.weights[order] == pytest.approx([2 / 3, 1 / 3], abs=1e-6)
    assert found.means[order] == pytest.approx(
        np.array([SAMPLES[:120].mean(0), SAMPLES[120:].mean(0)]), abs=1e-6
    )
    assert found.bic(SAMPLES) < min(fit(SAMPLES, k).bic(SAMPLES) for k in (1, 3))
    again = fit(SAMPLES, 2)
    assert np.array_equal(found.means, again.means)


def test_one_component_is_mean_and_covariance() -> None:
    found = fit(SAMPLES, 1)
    assert found.means[0] == pytest.approx(SAMPLES.mean(0))
    expected = np.cov(SAMPLES.T, ddof=0) + RIDGE * np.eye(3)
    assert found.covariances[0] == pytest.approx(expected)


def test_equal_samples_and_a_constant_feature_fit() -> None:
    assert np.isfinite(fit(np.ones((12, 3)), 3).surprisal(np.ones((2, 3)))).all()
    flat = SAMPLES * [1, 0, 1]
    assert np.isfinite(fit(flat, 4).surprisal(flat)).all()


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(TooFewSamples, match="5 components need 20 samples; there are 19"):
        fit(SAMPLES[:19], 5)
