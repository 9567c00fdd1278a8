"""Accepting or rejecting candidates by their saliency: the policy of a SaliencyRule. No tensors.

At each generated position the sampler leaves a pool: the likeliest tokens after logit bias,
penalties, temperature and filters, at most as many as the rule has candidates. One is drawn, or for
a greedy request the most likely one is taken; it is accepted iff its saliency S is at least
alpha * mean(history), otherwise it leaves the pool. If all draws are rejected, the likeliest of the
pool is taken, or the one with the largest S.

The model gives S as a mean over the keys J, which falls as 1 / sqrt(|J|) where the saliency is
spread evenly over a growing J. "cosine" takes that out, so that values of different positions can
be compared: S * sqrt(|J|) is the cosine of the angle between the row of saliency and the indicator
of J. The history holds the S of the last tokens of the answer; "accepted" leaves out those that
were taken because nothing was accepted.

There is nothing to test while no earlier output exists (J is empty), and until as many saliencies
were noted as the rule's warm-up says: then the first draw is accepted, and its saliency noted if J
is not empty. End and special tokens
are always accepted, or an answer might not end. A candidate that is certain has no gradient and so
no saliency; it is accepted, and nothing is noted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import InitVar, dataclass, field
from itertools import islice
from math import exp, sqrt

from saccade_interventions.rules import SaliencyRule

CERTAIN = 1 - 1e-6
"""A candidate above this probability is accepted if it has no gradient."""


@dataclass(frozen=True)
class Candidate:
    """One token of the pool.

    ``weight`` is its probability among what the filters leave, ``logprob`` its log-probability
    under the model's own distribution. ``saliency`` is a mean over the keys J, ``evidence``: its
    gradient is not zero.
    """

    token: int
    weight: float
    logprob: float
    saliency: float
    evidence: bool

    @property
    def probability(self) -> float:
        """Under the model's own distribution."""
        return exp(self.logprob)


@dataclass
class Acceptance:
    """What one sequence remembers from token to token: the saliencies of its last tokens."""

    rule: SaliencyRule
    ends: InitVar[Iterable[int]] = ()  # tokens that end the answer
    exempt: frozenset[int] = field(init=False)  # tokens that are never rejected
    history: deque[float] = field(init=False)
    noted: int = 0  # ever

    def __post_init__(self, ends: Iterable[int]) -> None:
        self.exempt = frozenset({*self.rule.exempt, *ends})
        self.history = deque(maxlen=self.rule.window)

    @property
    def threshold(self) -> float | None:
        """The least saliency to accept; None during the warm-up."""
        if self.noted < self.rule.warmup:
            return None
        return self.rule.alpha * sum(self.history) / len(self.history)

    def choose(self, pool: list[Candidate], order: Iterator[Candidate], keys: int) -> Choice:
        """Take one candidate of ``pool``, which is not empty.

        Args:
            order: candidates in the order of their draws, see :func:`drawn` and :func:`descending`.
            keys: size of J. 0: there is no saliency to speak of.
        """
        least = self.threshold if keys else None
        unit = sqrt(keys) if self.rule.normalisation == "cosine" else 1.0
        draws = 0
        for candidate in islice(order, self.rule.draws):
            draws += 1
            if least is None or self._passes(candidate, least, unit):
                self._note(candidate, unit, keys)
                return Choice(candidate, draws, draws - 1, False)
        best = max(pool, key=self._merit)
        if self.rule.history == "chosen":
            self._note(best, unit, keys)
        return Choice(best, draws, draws, True)

    def _passes(self, candidate: Candidate, least: float, unit: float) -> bool:
        certain = not candidate.evidence and candidate.probability > CERTAIN
        return candidate.token in self.exempt or certain or candidate.saliency * unit >= least

    def _merit(self, candidate: Candidate) -> float:
        """What the candidate with the most of it is taken for where all draws were rejected."""
        return candidate.weight if self.rule.fallback == "likeliest" else candidate.saliency

    def _note(self, candidate: Candidate, unit: float, keys: int) -> None:
        if keys and candidate.evidence:
            self.history.append(candidate.saliency * unit)
            self.noted += 1


@dataclass(frozen=True)
class Choice:
    """The candidate that became the token, and how: ``fallback`` if every draw was rejected."""

    candidate: Candidate
    draws: int
    rejections: int
    fallback: bool


def descending(pool: list[Candidate]) -> Iterator[Candidate]:
    """The candidates by falling probability, as a greedy request tries them."""
    return iter(sorted(pool, key=lambda candidate: -candidate.weight))


def drawn(pool: list[Candidate], numbers: Iterator[float]) -> Iterator[Candidate]:
    """Draws without replacement, each renormalised over what is left of the pool.

    Args:
        numbers: uniform in [0, 1), one a draw; the inverse of the cumulative distribution in the
            order of the pool, as the sampler's own draws.
    """
    left = list(pool)
    while left:
        target = next(numbers) * sum(candidate.weight for candidate in left)
        at, mass = 0, left[0].weight
        while mass <= target and at < len(left) - 1:
            at += 1
            mass += left[at].weight
        yield left.pop(at)
