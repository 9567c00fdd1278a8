"""Words that differ, marked with and without colours."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade_server.word_diff import word_diff

WORDS = st.lists(st.sampled_from(["a", "red", "circle", ",", ".", "and"]), max_size=8)
TEXTS = WORDS.map(lambda words: re.sub(r" ([,.])", r"\1", " ".join(words)))


@pytest.mark.parametrize(
    ("first", "second", "marked"),
    [
        ("a blue square and", "a blue cross and", "a blue [-square-]{+cross+} and"),
        ("a cross, a circle and a square.", "a cross and a square.",
         "a cross[-, a circle-] and a square."),
        ("a cross and a square.", "a cross, a circle and a square.",
         "a cross{+, a circle+} and a square."),
        ("yes", "", "[-yes-]"),
        ("", "it is", "{+it is+}"),
        ("same", "same", "same"),
        ("", "", ""),
    ],
)  # fmt: skip
def test_marks(first: str, second: str, marked: str) -> None:
    assert word_diff(first, second).plain == marked


@given(TEXTS, TEXTS)
def test_both_texts_can_be_read_back(first: str, second: str) -> None:
    """But for the spaces before words that were replaced."""
    marked = word_diff(first, second).plain
    new = re.sub(r"\{\+(.*?)\+\}", r"\1", re.sub(r"\[-.*?-\]", "", marked))
    old = re.sub(r"\[-(.*?)-\]", r"\1", re.sub(r"\{\+.*?\+\}", "", marked))
    assert new.split() == second.split() or new.replace(" ", "") == second.replace(" ", "")
    assert old.replace(" ", "") == first.replace(" ", "")


def test_marks_have_colours_of_their_own() -> None:
    text = word_diff("a blue square", "a blue cross")
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles == {"[-square-]": "red", "{+cross+}": "green"}
