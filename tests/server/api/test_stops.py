"""Stop strings do not depend on where the pieces of the text are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade_server.api.stops import StopStrings


def run(stops, pieces):
    """What is shown after each piece, and the whole."""
    watcher = StopStrings(tuple(stops))
    shown = [watcher.push(piece) for piece in pieces]
    return shown, "".join(shown) + watcher.flush()


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        ([], ["a", "b"], ["a", "b"]),
        (["END"], ["x", "E", "N", "D", "y"], ["x", "", "", "", ""]),
        (["END"], ["xE", "Ny"], ["x", "ENy"]),
        (["aab"], ["aa", "a", "b"], ["", "a", ""]),
        (["\n\n"], ["a\n", "b\n\nc"], ["a", "\nb"]),
        (["abcd", "bc"], ["abcde"], ["a"]),
        (["bc", "abc"], ["xabc"], ["x"]),
        (["ß→"], ["aß", "→b"], ["a", ""]),
    ],
)
def test_what_is_shown_when(stops, pieces, shown):
    assert run(stops, pieces)[0] == shown


def test_the_end_releases_what_was_held():
    assert run(["END"], ["say EN"]) == (["say "], "say EN")


TEXT = st.text("ab", max_size=12)


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4), st.lists(TEXT))
def test_cuts_do_not_matter(stops, pieces):
    text = "".join(pieces)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    starts = [text.find(s) for s in stops if s in text and text.find(s) + len(s) == min(ends)]
    expected = text[: min(starts)] if ends else text
    assert run(stops, pieces)[1] == expected == run(stops, list(text))[1]


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4), st.lists(TEXT))
def test_nothing_is_shown_that_is_taken_back(stops, pieces):
    shown, whole = run(stops, pieces)
    assert whole.startswith("".join(shown))
    assert not any(stop in whole for stop in stops)


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(TEXT),
    st.lists(TEXT),
)
def test_what_is_skipped_ends_nothing(stops, skipped, pieces):
    watcher = StopStrings(tuple(stops))
    shown = "".join([watcher.skip(piece) for piece in skipped])
    assert not watcher.stopped
    shown += "".join([watcher.push(piece) for piece in pieces]) + watcher.flush()
    head, text = "".join(skipped), "".join([*skipped, *pieces])
    places = [
        (at + len(s), at) for s in stops for at in range(len(text)) if text[at:].startswith(s)
    ]
    after = [place for place in places if place[0] > len(head)]
    assert shown == (text[: min(after)[1]] if after else text)
