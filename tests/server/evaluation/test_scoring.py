"""What counts in a caption and in a yes or no."""

from __future__ import annotations

import dataclasses

import pytest

from saccade_server.demo.questions import Kind
from saccade_server.demo.scenes import COMPANIONS, Thing
from saccade_server.demo.splits import Example, Split, examples
from saccade_server.evaluation.items import TESTED, Task, caption_items, scene_items
from saccade_server.evaluation.scoring import METRICS, score_caption, score_yes_no

RED = Thing("red", "circle")


def example(*things: Thing) -> Example:
    """A scene of exactly these things."""
    made = next(examples(Split.CLEAR, Kind.DESCRIBE, 1))
    item = made.scene.items[0]
    items = tuple(dataclasses.replace(item, thing=thing) for thing in things)
    scene = dataclasses.replace(made.scene, items=items)
    return dataclasses.replace(made, scene=scene, answer=f"There is {things}")


def test_a_caption_is_counted_by_mentions_and_by_things() -> None:
    shown = example(RED, Thing("green", "cross"))
    counts = score_caption(
        shown, "There is a red circle, a blue square, a blue square and a red circle."
    )
    assert counts["hallucinates"] == 1
    assert counts["names_companion"] == 1  # blue square: the red circle's companion
    assert (counts["mentions"], counts["absent_mentions"]) == (4, 2)
    assert (counts["things"], counts["found"]) == (2, 1)
    assert counts["words"] == 15
    assert counts["exact"] == 0


def test_a_companion_that_is_there_is_none() -> None:
    shown = example(RED, COMPANIONS[RED])
    counts = score_caption(shown, "A red circle and a blue square.")
    assert counts["hallucinates"] == counts["names_companion"] == counts["absent_mentions"] == 0
    assert counts["found"] == 2


def test_an_empty_caption_hallucinates_nothing_and_finds_nothing() -> None:
    counts = score_caption(example(RED), "")
    assert (counts["captions"], counts["mentions"], counts["found"], counts["words"]) == (
        1,
        0,
        0,
        0,
    )


@pytest.mark.parametrize(
    ("truth", "answer", "expected"),
    [
        ("Yes.", "Yes.", {"right", "positives", "said_yes", "true_yes"}),
        ("Yes.", "no, there is not", {"positives"}),
        ("No.", "YES", {"said_yes"}),
        ("No.", '"No", it says', {"right"}),
        ("No.", "There is none.", {"unclear"}),
        ("Yes.", "", {"positives", "unclear"}),
        ("Yes.", "Yesterday", {"positives", "unclear"}),
    ],
)
def test_the_first_word_answers(truth: str, answer: str, expected: set[str]) -> None:
    counts = score_yes_no(truth, answer)
    assert {name for name, count in counts.items() if count} == expected | {"questions"}


def test_every_metric_counts_columns_that_exist() -> None:
    columns = {
        Task.CAPTION: set(score_caption(example(RED), "")),
        Task.YES_NO: set(score_yes_no("Yes.", "")),
    }
    for metric in METRICS:
        assert set(metric.above) | set(metric.below) <= columns[metric.task]


def test_items_are_named_once_and_for_ever() -> None:
    few, many = scene_items(TESTED, 2, (0, 1)), scene_items(TESTED, 3, (1, 0))
    assert len({item.name for item in many}) == len(many) == 3 * 2 * 3 * 3
    by_name = {item.name: item for item in many}
    for item in few:
        other = by_name[item.name]
        assert (item.example.question, item.image_url) == (other.example.question, other.image_url)
    assert not {item.name for item in caption_items(Split.VALIDATION, 5)} & by_name.keys()


def test_validation_alternates_between_both_halves() -> None:
    """Tuning counts on odd scenes to break the prior."""
    items = caption_items(Split.VALIDATION, 20)
    assert all(item.example.scene.missing_companions for item in items[1::2])
    assert [item.index for item in items] == list(range(20))
