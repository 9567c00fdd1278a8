r"""A mixture of Gaussians with full covariances, fitted by expectation-maximisation.

    p(x) = sum_k w_k N(x; mu_k, Sigma_k)

For a few features and some hundred samples, which is what detectors need; no more than that. Starts
are those of k-means++, the best of several is kept, and a ridge on the diagonals keeps covariances
regular, as in scikit-learn's GaussianMixture. Everything is float64 and follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saccade_server.detectors.traced import Floats

RIDGE = 1e-4
RESTARTS = 10
MOST_ROUNDS = 200
SETTLED = 1e-6
"""Gain of the mean log-likelihood, in nats, below which a fit has settled."""

LEAST_PER_COMPONENT = 4
"""Samples: of as many points, the covariance of three features can have full rank."""


class TooFewSamples(ValueError):
    """There is less to fit on than the mixture has components for."""


@dataclass(frozen=True)
class Mixture:
    """``weights`` [k], ``means`` [k, d], ``covariances`` [k, d, d]."""

    weights: Floats
    means: Floats
    covariances: Floats

    def log_joint(self, x: Floats) -> Floats:
        """ln(w_k N(x; mu_k, Sigma_k)) of samples [n, d], [n, k]."""
        roots = np.linalg.cholesky(self.covariances)
        apart = x[None] - self.means[:, None]  # [k, n, d]
        white = np.linalg.solve(roots, apart.transpose(0, 2, 1))  # [k, d, n]
        log_det = 2 * np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(1)
        squares = (white**2).sum(1)
        norm = x.shape[1] * np.log(2 * np.pi) + log_det
        found: Floats = (np.log(self.weights)[:, None] - 0.5 * (norm[:, None] + squares)).T
        return found

    def surprisal(self, x: Floats) -> Floats:
        """-ln p(x) of samples [n, d], [n] nats."""
        return -_log_sum(self.log_joint(np.asarray(x, np.float64)))

    def bic(self, x: Floats) -> float:
        """Bayes' information criterion on the samples it was fitted on; lower is better."""
        count, size = len(self.weights), x.shape[1]
        free = count - 1 + count * size + count * size * (size + 1) // 2
        return float(2 * self.surprisal(x).sum() + free * np.log(len(x)))


def fit(x: Floats, components: int, *, seed: int = 0, restarts: int = RESTARTS) -> Mixture:
    """Fit samples [n, d].

    Raises:
        TooFewSamples: fewer than :data:`LEAST_PER_COMPONENT` for each component.
    """
    x = np.asarray(x, np.float64)
    if len(x) < LEAST_PER_COMPONENT * components:
        need = LEAST_PER_COMPONENT * components
        raise TooFewSamples(f"{components} components need {need} samples; there are {len(x)}")
    generator = np.random.default_rng(seed)
    fits = [_run(x, _start(x, components, generator)) for _ in range(restarts)]
    return min(fits, key=lambda found: float(found.surprisal(x).sum()))


def step(x: Floats, mixture: Mixture) -> Mixture:
    """One round of expectation and maximisation."""
    joint = mixture.log_joint(x)
    return _maximised(x, np.exp(joint - _log_sum(joint)[:, None]))


def _run(x: Floats, mixture: Mixture) -> Mixture:
    before = np.inf
    for _ in range(MOST_ROUNDS):
        mixture = step(x, mixture)
        now = float(mixture.surprisal(x).mean())
        if before - now < SETTLED:
            break
        before = now
    return mixture


def _maximised(x: Floats, shares: Floats) -> Mixture:
    """The mixture that fits ``shares`` [n, k] of the samples best."""
    totals = shares.sum(0) + 10 * np.finfo(np.float64).eps
    means = shares.T @ x / totals[:, None]
    apart = x[None] - means[:, None]  # [k, n, d]
    covariances = np.einsum("nk,kni,knj->kij", shares, apart, apart) / totals[:, None, None]
    covariances += RIDGE * np.eye(x.shape[1])
    return Mixture(totals / totals.sum(), means, covariances)


def _start(x: Floats, components: int, generator: np.random.Generator) -> Mixture:
    """Centres that k-means++ draws; each sample belongs to the nearest."""
    centres = x[generator.integers(len(x))][None]
    while len(centres) < components:
        nearest = _squares(x, centres).min(1)
        total = nearest.sum()
        chances = nearest / total if total else np.full(len(x), 1 / len(x))
        centres = np.vstack([centres, x[generator.choice(len(x), p=chances)]])
    shares = np.eye(components)[_squares(x, centres).argmin(1)]
    return _maximised(x, shares)


def _squares(x: Floats, centres: Floats) -> Floats:
    found: Floats = ((x[:, None] - centres[None]) ** 2).sum(-1)
    return found


def _log_sum(values: Floats) -> Floats:
    """Log of the sum of exponentials over the last axis."""
    top = values.max(-1, keepdims=True)
    found: Floats = (top + np.log(np.exp(values - top).sum(-1, keepdims=True)))[..., 0]
    return found
