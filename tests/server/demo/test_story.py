"""Answers about a sample against what is in it."""

import json

import pytest

from saccade_server.demo import SAMPLES, SAMPLES_PATH, SHOWN_SAMPLE
from saccade_server.demo.story import Story

STORY = Story.of(SHOWN_SAMPLE)


def test_every_sample_has_its_story() -> None:
    for name in SAMPLES:
        story = Story.of(name)
        assert story.judge(story.reference).right
    with pytest.raises(ValueError, match="no sample 'other'"):
        Story.of("other")


def test_every_sample_says_why_it_was_chosen() -> None:
    entries = json.loads((SAMPLES_PATH / "samples.json").read_text(encoding="utf-8"))
    rules = {entry["name"]: entry["chosen"] for entry in entries}
    assert rules[SHOWN_SAMPLE].startswith("The first scene of its split")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (STORY.reference, "right"),
        (STORY.plain_answer, "wrong: no blue square there, misses the blue cross"),
        ("There is a red circle and a blue cross.", "wrong: misses the blue diamond"),
        (
            "There is a blue cross, a red circle and a blue diamond.",
            "wrong: not the reference's words",
        ),
        ("", "wrong: misses the red circle, misses the blue cross, misses the blue diamond"),
    ],
)
def test_verdicts(answer: str, verdict: str) -> None:
    assert str(STORY.judge(answer)) == verdict
