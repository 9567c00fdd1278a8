"""What is counted on text, and that nothing is reported on what was calibrated with."""

import json
import tomllib
from pathlib import Path

import pytest
from language import copying, facts, fluency, paired, tone

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_tone_counts_whole_words_of_both_lists() -> None:
    score = tone.Tone()
    assert score("A LOVELY, sunny day; nothing happened.") == 1
    assert score("It was sad and wonderful and terrible.") == pytest.approx(-1 / 3)
    assert score("Sadness") == -1
    assert score("The illness of a goodly man.") == 0
    assert tone.Tone(without=frozenset({"lovely"}))("A lovely, sad day.") == -1


def test_no_word_counts_for_both_sides() -> None:
    lists = tomllib.loads((BENCHMARKS / "language/sentiment.toml").read_text())
    both = [*lists["positive"], *lists["negative"]]
    assert len(both) == len(set(both))


def test_held_out_prompts_are_none_of_the_calibrated() -> None:
    calibrated = {question for question, _ in tone.calibration_answers()}
    assert not calibrated & set(tone.questions())
    words = tomllib.loads((BENCHMARKS / "language/copying.toml").read_text())
    assert not set(words["calibration"]) & set(words["held_out"])


def test_classes_have_the_same_questions() -> None:
    """So that a question is not what tells them apart."""
    lines = [json.loads(line) for line in tone.EXAMPLES.read_text().splitlines()]
    by_label: dict[str, list[str]] = {"positive": [], "negative": []}
    for line in lines:
        by_label[line["label"]].append(line["messages"][0]["content"])
    assert by_label["positive"] == by_label["negative"]


def test_committed_lists_are_those_that_are_drawn() -> None:
    drawn = copying.lists("calibration", copying.CALIBRATION_LISTS, copying.CALIBRATION_SEED)
    assert [json.loads(line) for line in copying.EXAMPLES.read_text().splitlines()] == drawn


@pytest.mark.parametrize("part", ["calibration", "held_out"])
def test_a_list_tells_its_next_word(part: str) -> None:
    for entry in copying.lists(part, 20, 5):
        words = entry["messages"][-1]["content"].split()
        again = len(words) - copying.WORDS
        assert words[copying.WORDS :] == words[:again]
        assert words[again] == entry["label"]


def test_random_tokens_tell_their_next_one() -> None:
    for tokens, expected in copying.sequences(1000):
        again = len(tokens) - 1 - copying.RANDOM_TOKENS
        assert tokens[1 + copying.RANDOM_TOKENS :] == tokens[1 : 1 + again]
        assert tokens[1 + again] == expected


def test_controls_are_other_heads_of_the_same_layers() -> None:
    chosen = [(3, 1), (3, 2), (5, 0), (7, 0), (7, 1), (7, 2)]
    for drawn in copying.controls(chosen, 4, 8):
        assert not set(drawn) & set(chosen)
        assert [layer for layer, _ in drawn] == [3, 3, 5, 7]  # layer 7 has one other head


def test_a_right_answer_holds_a_right_text_whole() -> None:
    iron = facts.Fact("", "", ["Fe"], [])
    assert iron.is_right("It is fe.")
    assert not iron.is_right("It is Iron; I feel it.")


def test_no_right_text_is_among_the_wrong_ones() -> None:
    for fact in facts.facts():
        assert len(fact.wrong) == 3
        assert not any(fact.is_right(text) for text in fact.wrong), fact.question


def test_repetition() -> None:
    assert fluency.repetition("a b c d") == 0
    assert fluency.repetition("no no no no no") == pytest.approx(2 / 3)
    assert fluency.repetition("two words") == 0


def test_differences_are_paired() -> None:
    plain = [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]
    found = paired.difference([value + 1 for value in plain], plain)
    assert (found.value, found.low, found.high) == (1, 1, 1)
    assert found.sign_p == pytest.approx(2 / 2**6)
