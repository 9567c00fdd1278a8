"""In one word, what a setting did to the answers, and by which figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from saccade_server.evaluation.measure import Figure, Measured
from saccade_server.evaluation.scoring import BY_NAME

JUDGED = ("CHAIR_s", "exact", "accuracy")
"""The figures, on every split, whose change from none makes the verdict."""

RULE = (
    f"A setting helps or hurts by what it does to {', '.join(JUDGED)} on the three splits: a "
    "change counts if its 95 % interval excludes zero and a sign test over the scenes that changed "
    "gives p < 0.05. A lower CHAIR_s is no help where recall of things falls beyond chance: saying "
    "less hallucinates less. Nothing is corrected for the number of comparisons, nine a setting, "
    "so now and then a change counts that came about by chance."
)


@dataclass(frozen=True)
class Verdict:
    """``better`` and ``worse`` list (split, metric) whose change is beyond chance."""

    word: str
    better: tuple[tuple[str, str], ...]
    worse: tuple[tuple[str, str], ...]


def verdict(measured: Measured) -> Verdict:
    """Helps, hurts, mixed, no measurable effect, or nothing changed at all."""
    better: list[tuple[str, str]] = []
    worse: list[tuple[str, str]] = []
    for split, figures in measured.figures.items():
        for name in JUDGED:
            change = figures[name].change if name in figures else None
            if change is not None and change.beyond_chance:
                is_better = (change.value < 0) == BY_NAME[name].lower_is_better
                if not is_better:
                    worse.append((split.value, name))
                elif name != "CHAIR_s" or not _says_less(figures):
                    better.append((split.value, name))
    if measured.changed == 0:
        word = "changes no answer"
    elif better and worse:
        word = "mixed"
    elif better or worse:
        word = "helps" if better else "hurts"
    else:
        word = "no measurable effect"
    return Verdict(word, tuple(better), tuple(worse))


def _says_less(figures: Mapping[str, Figure]) -> bool:
    """True if captions leave out more of what is there, beyond chance."""
    recall = figures["recall of things"].change
    return recall is not None and recall.beyond_chance and recall.value < 0
