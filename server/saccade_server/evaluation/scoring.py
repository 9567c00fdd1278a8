"""From answers to counts. Every figure is a quotient of two sums of these counts.

Captions, in the words of CHAIR (Rohrbach et al., EMNLP 2018): CHAIR_s is the share of captions that
name something absent, CHAIR_i the share of mentions that are of something absent. Yes/no questions
are scored as POPE does (Li et al., EMNLP 2023), except that an answer which is neither yes nor no
is wrong and counts as neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from saccade_server.demo.questions import things_named
from saccade_server.demo.splits import Example
from saccade_server.evaluation.items import Item, Task

Counts = Mapping[str, int]
"""Column -> how often, for one answer."""


@dataclass(frozen=True)
class Metric:
    """``above`` / ``below``, both weighted sums of counts over answers.

    ``binary``: it is the share of some answers, one trial each. ``lower_is_better``: None if
    neither way is better.
    """

    name: str
    task: Task
    above: Mapping[str, int]
    below: Mapping[str, int]
    lower_is_better: bool | None = False
    binary: bool = True


METRICS = (
    Metric("CHAIR_s", Task.CAPTION, {"hallucinates": 1}, {"captions": 1}, True),
    Metric("CHAIR_i", Task.CAPTION, {"absent_mentions": 1}, {"mentions": 1}, True, binary=False),
    Metric("names companion", Task.CAPTION, {"names_companion": 1}, {"captions": 1}, True),
    Metric("recall of things", Task.CAPTION, {"found": 1}, {"things": 1}, binary=False),
    Metric("exact", Task.CAPTION, {"exact": 1}, {"captions": 1}),
    Metric("words", Task.CAPTION, {"words": 1}, {"captions": 1}, None, binary=False),
    Metric("accuracy", Task.YES_NO, {"right": 1}, {"questions": 1}),
    Metric("precision", Task.YES_NO, {"true_yes": 1}, {"said_yes": 1}),
    Metric("recall", Task.YES_NO, {"true_yes": 1}, {"positives": 1}),
    Metric("F1", Task.YES_NO, {"true_yes": 2}, {"said_yes": 1, "positives": 1}, binary=False),
    Metric("yes ratio", Task.YES_NO, {"said_yes": 1}, {"questions": 1}, None),
    Metric("unclear", Task.YES_NO, {"unclear": 1}, {"questions": 1}, True),
)

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}

COLUMNS = tuple(
    dict.fromkeys(name for metric in METRICS for name in (*metric.above, *metric.below))
)
"""All columns, in a fixed order."""


def score(item: Item, answer: str) -> Counts:
    """The counts of one answer; columns of the other task are absent."""
    if item.task is Task.CAPTION:
        return score_caption(item.example, answer)
    return score_yes_no(item.example.answer, answer)


def score_caption(example: Example, answer: str) -> Counts:
    """Counts of one caption. A thing named twice is two mentions, as in CHAIR."""
    scene = example.scene
    named, present = things_named(answer), set(scene.things)
    absent = sum(thing not in present for thing in named)
    return {
        "captions": 1,
        "exact": int(answer == example.answer),
        "hallucinates": int(absent > 0),
        "names_companion": int(not set(named).isdisjoint(scene.missing_companions)),
        "mentions": len(named),
        "absent_mentions": absent,
        "things": len(present),
        "found": len(present & set(named)),
        "words": len(answer.split()),
    }


def score_yes_no(truth: str, answer: str) -> Counts:
    """Counts of one yes/no question; the answer's first word decides."""
    expected, said = _first_word(truth), _first_word(answer)
    return {
        "questions": 1,
        "positives": int(expected == "yes"),
        "said_yes": int(said == "yes"),
        "true_yes": int(said == expected == "yes"),
        "right": int(said == expected),
        "unclear": int(said not in ("yes", "no")),
    }


def _first_word(text: str) -> str:
    words = text.split(maxsplit=1)
    return words[0].strip(".,;:!?\"'").lower() if words else ""
