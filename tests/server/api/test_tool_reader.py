"""What of an answer's text is a call of a tool, in whatever pieces the text comes."""

import json
import re
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade_server.api.answers import Collected
from saccade_server.api.choice import Delta
from saccade_server.api.tools.reader import ToolReader
from saccade_server.models.tool_format import ToolFormat

HERMES = ToolFormat(
    lead="<tool_call>\n",
    trail="\n</tool_call>",
    between="\n</tool_call>\n<tool_call>\n",
    parts=('{"name": "', '", "arguments": ', "}"),
    name_first=True,
    name_key="name",
    arguments_key="arguments",
)
LLAMA = ToolFormat(
    lead="",
    trail="",
    between=None,
    parts=('{"name": "', '", "parameters": ', "}"),
    name_first=True,
    name_key="name",
    arguments_key="parameters",
)
LISTED = ToolFormat(
    lead="[CALLS][",
    trail="]",
    between=", ",
    parts=('{"arguments": ', ', "name": "', '"}'),
    name_first=False,
    name_key="name",
    arguments_key="arguments",
)
FORMATS = {"hermes": HERMES, "llama": LLAMA, "listed": LISTED}
NAMES = ("now", "get_weather")
ZONE = '{"zone": "UTC"}'

Calls = list[tuple[str, str]]


def read(pieces: Sequence[str], form: ToolFormat = HERMES) -> tuple[str, Calls]:
    """What is said and called in an answer that comes in these pieces, an empty one behind them."""
    reader, got = ToolReader(form, NAMES), Collected()
    for piece in pieces:
        said = reader.read(piece, False)
        got.add(Delta(0, said.text, calls=said.calls))
    said = reader.read("", True)
    got.add(Delta(0, said.text, calls=said.calls))
    assert reader.has_called == bool(got.calls)
    assert len({call.id for call in got.calls}) == len(got.calls)
    assert all(re.fullmatch("call_[0-9a-f]{24}", call.id) for call in got.calls)
    return got.text, [(call.name, call.arguments) for call in got.calls]


def hermes(name: str, arguments: str) -> str:
    return HERMES.write([(name, arguments)])


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_what_a_template_writes_is_read(form: ToolFormat, calls: int) -> None:
    made = [
        ("now", ZONE),
        ("get_weather", '{"city": "Zürich \\"{]}\\" 北京", "x": [{}, 1.5e3]}'),
        ("now", "{}"),
    ][:calls]
    if form is LLAMA and calls > 1:
        text = "; ".join(LLAMA.write([call]) for call in made)
    else:
        text = form.write(made)
    assert read([text], form) == ("", made)
    assert read(list(text), form) == ("", made)


@pytest.mark.parametrize(
    ("text", "said", "called"),
    [
        ("", "", []),
        ("Hello", "Hello", []),
        ("\n Hello \n", "\n Hello \n", []),
        ("Let me see.\n" + hermes("now", ZONE), "Let me see.", [("now", ZONE)]),
        ("  \n" + hermes("now", ZONE) + "\n\n", "", [("now", ZONE)]),
        (hermes("now", ZONE) + "\nDone. ", "Done. ", [("now", ZONE)]),
        ("A\n" + hermes("now", "{}") + "\nB", "A\n\nB", [("now", "{}")]),
        ("a < b <tool", "a < b <tool", []),
        ("<tool_call>", "<tool_call>", []),
        ("<tool_call>\nnow()\n</tool_call>", "<tool_call>\nnow()\n</tool_call>", []),
        ('<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
        ('<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
        ('<tool_call>{"name": "now", "arguments": ""}</tool_call>', "", [("now", "{}")]),
        (
            '<tool_call>{"arguments": {"a": "}"}, "name": "now"}</tool_call>',
            "",
            [("now", '{"a": "}"}')],
        ),
        (
            '<tool_call>{"type": "function", "name": "now", "parameters": {}, "id": 7}</tool_call>',
            "",
            [("now", "{}")],
        ),
        (
            '<tool_call>{"name": "now", "arguments": "{\\"a\\": \\"\\u00e9\\ud83d\\ude00\\"}"}'
            "</tool_call>",
            "",
            [("now", '{"a": "é😀"}')],
        ),
        (
            '<tool_call>{"name": "now", "arguments": "\\ud83d\\n\\q"}</tool_call>',
            "",
            [("now", "\ufffd\n\\q")],
        ),
        ('<tool_call>{"name": "another", "arguments": {}}</tool_call>', "", [("another", "{}")]),
        (
            '<tool_call>{"name": "no name", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "no name", "arguments": {}}</tool_call>',
            [],
        ),
        (
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
            [],
        ),
        (
            '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
            '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
            [],
        ),
        (
            '<tool_call>{"name": "now", "x"}</tool_call>',
            '<tool_call>{"name": "now", "x"}</tool_call>',
            [],
        ),
        ("<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>", []),
        # Broken off, by what ends a call and by the end of the answer.
        ('<tool_call>{"name": "now", "arguments": {"a": 1</tool_call>x', "x", [("now", '{"a": 1')]),
        ('<tool_call>{"name": "now", "arguments": {"a": "b', "", [("now", '{"a": "b')]),
        ('<tool_call>{"name": "now", "arguments": {"a": "b\\', "", [("now", '{"a": "b\\')]),
        ('<tool_call>{"name": "now", "arguments": {}', "", [("now", "{}")]),
        ('<tool_call>{"name": "now", "arguments": {}}\n</tool', "", [("now", "{}")]),
        ('<tool_call>{"name": "now", "argu', '<tool_call>{"name": "now", "argu', []),
        # A call whose end is not a call's.
        ('<tool_call>{"name": "now", "arguments": {}}} x', "} x", [("now", "{}")]),
        (
            '<tool_call>{"name": "now", "arguments": {}} oops </tool_call>',
            "oops </tool_call>",
            [("now", "{}")],
        ),
        ('<tool_call>{"name": "now", "arguments": {} oops', "oops", [("now", "{}")]),
        # The next marker counts again.
        ("<tool_call>oops " + hermes("now", ZONE), "<tool_call>oops", [("now", ZONE)]),
        ('<tool_call>{"a" ' + hermes("now", ZONE), '<tool_call>{"a"', [("now", ZONE)]),
        ("<tool_call><tool_call>" + hermes("now", ZONE)[11:], "<tool_call>", [("now", ZONE)]),
        ("<<tool_call>" + hermes("now", ZONE)[11:], "<", [("now", ZONE)]),
    ],
)
def test_calls_between_markers(text: str, said: str, called: Calls) -> None:
    assert read([text]) == (said, called)
    assert read(list(text)) == (said, called)


@pytest.mark.parametrize(
    ("text", "said", "called"),
    [
        (' {"name": "now", "parameters": {"zone": "UTC"}}', "", [("now", ZONE)]),
        ('{"name": "now", "arguments": {"zone": "UTC"}}', "", [("now", ZONE)]),
        ('{"type": "function", "name": "now", "parameters": {}}\n', "", [("now", "{}")]),
        (
            '{"name": "now", "parameters": {}}\n{"name": "now", "parameters": {}}',
            "",
            [("now", "{}"), ("now", "{}")],
        ),
        (
            '{"name": "now", "parameters": {}}; {"name": "x", "parameters": {}}',
            '; {"name": "x", "parameters": {}}',
            [("now", "{}")],
        ),
        ('{"name": "now", "parameters": {}} Done.', "Done.", [("now", "{}")]),
        ('{"name": "Alice", "parameters": {}}', '{"name": "Alice", "parameters": {}}', []),
        ('{"name": "Alice", "age": 30}', '{"name": "Alice", "age": 30}', []),
        ('Well: {"name": "now", "parameters": {}}', 'Well: {"name": "now", "parameters": {}}', []),
        ('{x {"name": "now", "parameters": {}}', '{x {"name": "now", "parameters": {}}', []),
    ],
)
def test_calls_without_markers(text: str, said: str, called: Calls) -> None:
    assert read([text], LLAMA) == (said, called)
    assert read(list(text), LLAMA) == (said, called)


def cut(text: str, places: Sequence[int]) -> list[str]:
    ends = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(ends)]


BITS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "\n", " ", "{", "}", '"', "\\", "[", "]", ",", ":", ";", "<",
     '"name"', '"arguments"', '"parameters"', '"now"', '{"name": "now", "arguments": ', ZONE,
     "[CALLS][",
     '"a": 1', "null", "é", "\\u00", "\\ud83d", "\\ude00", hermes("now", ZONE), "word"]
)  # fmt: skip
TEXTS = st.lists(BITS | st.text(max_size=4), max_size=12).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 10_000), max_size=8), st.sampled_from(sorted(FORMATS)))
def test_the_cut_of_the_text_changes_nothing(text: str, places: list[int], style: str) -> None:
    whole = read([text], FORMATS[style])
    assert read(cut(text, places), FORMATS[style]) == whole
    assert read(list(text), FORMATS[style]) == whole


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from(sorted(FORMATS)))
def test_nothing_is_lost(text: str, style: str) -> None:
    said, called = read([text], FORMATS[style])
    if not called:
        assert said == text
    # What is said stands in the text, in its order, as do arguments as the model wrote them.
    rest = iter(text)
    assert all(letter in rest for letter in said)
    for _, arguments in called:
        assert arguments == "{}" or arguments in text or "\\" in text


OBJECTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(NAMES), OBJECTS, st.booleans()), min_size=1, max_size=3),
    st.lists(st.integers(0, 10_000), max_size=8),
    st.sampled_from(["hermes", "listed"]),
)
def test_any_arguments_come_as_they_are_written(
    calls: list[tuple[str, dict[str, object], bool]], places: list[int], style: str
) -> None:
    made = [(name, json.dumps(value, ensure_ascii=ascii)) for name, value, ascii in calls]
    assert read(cut(FORMATS[style].write(made), places), FORMATS[style]) == ("", made)


def test_arguments_are_handed_out_as_they_come() -> None:
    reader = ToolReader(HERMES, NAMES)
    assert reader.read('Sure.\n<tool_call>\n{"name": "now", "arguments": ', False).text == "Sure."
    first = reader.read('{"zo', False)
    assert [(call.name, call.arguments) for call in first.calls] == [("now", '{"zo')]
    assert first.calls[0].id
    for piece in ('ne": "U', "TC", '"}'):
        said = reader.read(piece, False)
        assert [(call.index, call.id, call.arguments) for call in said.calls] == [(0, None, piece)]
    assert reader.read("}\n</tool_call>", True).calls == ()


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"a": "' * 4000,
        "<tool_call>" * 6000,
        " " * 60_000,
        '<tool_call>{"arguments": {' + '"a": [' * 10_000,
        '<tool_call>{"name": "now", "arguments": {' + '"a": {' * 10_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    said, called = read([text[at : at + 4] for at in range(0, len(text), 4)])
    assert said == text or called
    assert time.process_time() - began < 3
