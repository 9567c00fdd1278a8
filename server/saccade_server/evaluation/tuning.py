"""Choosing a strength, by the validation split alone.

The criterion: the lowest share of the split's counterfactual scenes whose caption names something
absent (CHAIR_s), among the strengths that cost at most two points of exact captions on its ordinary
scenes, against none. Ties go to more exact captions, then to the weaker strength. If no strength
qualifies, the one with the most exact captions on ordinary scenes is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_EXACT_LOST = 0.02

CRITERION = (
    "lowest CHAIR_s on the counterfactual half of the validation split, among strengths that lose "
    f"at most {MOST_EXACT_LOST:.0%} (absolute) of exact captions on its ordinary half against "
    "none; ties: more exact captions there, then the weaker strength; if none qualifies, the one "
    "with the most exact captions on the ordinary half"
)


@dataclass(frozen=True)
class Trial:
    """What one strength did on the validation split. ``chair`` is CHAIR_s where the prior fails."""

    chair: float
    exact: float


def qualifies(trial: Trial, none: Trial) -> bool:
    """Whether a strength costs few enough exact captions."""
    return none.exact - trial.exact <= MOST_EXACT_LOST + 1e-9


def choose(trials: Sequence[Trial], none: Trial) -> int:
    """Index of the chosen strength; ``trials`` are weakest first and not empty."""
    allowed = [index for index, trial in enumerate(trials) if qualifies(trial, none)]
    if not allowed:
        return max(range(len(trials)), key=lambda index: (trials[index].exact, -index))
    return min(allowed, key=lambda index: (trials[index].chair, -trials[index].exact, index))
