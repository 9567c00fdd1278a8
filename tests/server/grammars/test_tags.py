"""Answers with tags: alone, or in free text that triggers end."""

import pytest

from saccade_server.grammars.errors import UNSUPPORTED, GrammarError
from saccade_server.grammars.tags import Tag, of_tags
from saccade_testing.drawn_texts import accepts, byte_writer

NUMBER = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TEXT = {"type": "object", "properties": {"y": {"const": "q"}}, "required": ["y"]}
TAGS = [
    Tag('<call>\n{"name": "f", "arguments": ', NUMBER, "}\n</call>"),
    Tag('<call>\n{"name": "g", "arguments": ', TEXT, "}\n</call>"),
]
F = '<call>\n{"name": "f", "arguments": {"x": 1}}\n</call>'
G = '<call>\n{"name": "g", "arguments": {"y": "q"}}\n</call>'
WRONG = '<call>\n{"name": "g", "arguments": {"x": 1}}\n</call>'


def has(source, *texts):
    return [accepts(byte_writer(), source, text) for text in texts]


def test_one_tag_and_nothing_else():
    assert has(of_tags(TAGS), F, G) == [True, True]
    assert not any(has(of_tags(TAGS), "", WRONG, F + G, F + "\n" + G, "Well: " + F, F + "."))


def test_one_tag_or_none():
    assert has(of_tags(TAGS, required=False), F, "", F + G) == [True, True, False]


def test_several_tags_with_a_separator():
    source = of_tags(TAGS, repeated=True, separator="\n")
    assert has(source, F, F + "\n" + G, F + "\n" + G + "\n" + G) == [True] * 3
    assert not any(has(source, F + G, F + "\n", ""))


def test_or_something_else_instead():
    source = of_tags(TAGS, instead=['"no"', "/[0-9]+/"])
    assert has(source, F, "no", "12", "n", "") == [True, True, True, False, False]


def test_free_text_until_a_trigger():
    source = of_tags(TAGS, triggers=["<call>"], required=False, repeated=True)
    free = ["", "a < b", f"Well: {F}", f"{F}{G}", f"one {F} two <cal {G} three"]
    assert all(has(source, *free))
    assert not any(has(source, "<call>", f"<call> {F}", WRONG, f"{F} <call>"))


def test_at_least_one_tag_in_free_text():
    source = of_tags(TAGS, triggers=["<call>"], required=True, repeated=True)
    assert has(source, f"Well: {F} so", F, "", "Well") == [True, True, False, False]


def test_an_answer_that_may_not_repeat_ends_behind_its_tag():
    source = of_tags(TAGS, triggers=["<call>"], required=False)
    assert has(source, f"Well: {F}", "Well", F + G, F + ".") == [True, True, False, False]
    source = of_tags(TAGS, triggers=["<call>"])
    assert has(source, f"Well: {F}", "Well") == [True, False]


def test_triggers_of_their_own():
    tags = [Tag("<a>", NUMBER, "</a>"), Tag("[b]", TEXT, "[/b]")]
    source = of_tags(tags, triggers=["<", "[b"], repeated=True)
    assert all(has(source, '<a>{"x":1}</a>', '.[b]{"y":"q"}[/b] <a>{"x":2}</a>'))
    assert not any(has(source, '<b>{"y":"q"}[/b]', '<a>{"y":"q"}</a>', "1 < 2"))


def test_an_error_is_told_at_its_tag():
    with pytest.raises(GrammarError) as caught:
        of_tags([TAGS[0], Tag("<call>", {"properties": {"a": {"not": {}}}}, "")])
    assert caught.value.path == (1, "properties", "a", "not")
    assert caught.value.code == UNSUPPORTED


@pytest.mark.parametrize("triggers", [["<tool>"], [""]])
def test_a_tag_without_its_trigger_is_refused(triggers):
    with pytest.raises(GrammarError, match="trigger") as caught:
        of_tags(TAGS, triggers=triggers)
    assert caught.value.path == (0,)
    with pytest.raises(GrammarError, match="at least one"):
        of_tags([])
