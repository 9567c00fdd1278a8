"""What a log line may hold."""

import json
import sys

import pytest

from saccade_server.logs.lines import LONGEST_VALUE, MOST_ITEMS, one_line, pair, plain

HOSTILE = [
    "a\nb",
    "a\r\nb",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg",
    "\u202egnp.exe",
    "\ud800",
    "\x00\x08\x7f",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_breaks_a_line_or_moves_a_cursor(text: str) -> None:
    for shown in (one_line(text), pair("key", text)):
        assert shown.isprintable()
        assert len(shown.splitlines()) == 1
        shown.encode()


def test_every_character_that_is_no_text_is_escaped() -> None:
    """Of the planes that are used; Python says of the rest too that it cannot be printed."""
    for code in range(0x3000):
        shown = one_line(chr(code))
        assert shown == chr(code) or shown.startswith("\\")
        assert len(shown.splitlines()) == 1
        if chr(code) != "\xad" and shown == chr(code):
            assert not 0x80 <= code < 0xA0


def test_texts_end() -> None:
    assert one_line("x" * 20, 8) == "xxxxxxxx… (12 characters more)"
    assert len(plain("x" * 10**6)) < LONGEST_VALUE + 40
    assert len(plain(["x"] * 10**5)) == MOST_ITEMS


def test_values_of_fields() -> None:
    assert plain([1, 2.00000001, True, None, "a", float("nan"), (1, [2])]) == [
        1, 2.0, True, None, "a", None, [1, [2]],
    ]  # fmt: skip
    assert plain({"a": "secret"}) == "dict"
    assert plain(ValueError("secret")) == "ValueError"
    json.dumps(plain(sys.float_info.max), allow_nan=False)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("vcd", "a=vcd"),
        ("", 'a=""'),
        ("two words", 'a="two words"'),
        ("x b=1", 'a="x b=1"'),
        ('say "no"', 'a="say \\"no\\""'),
        (["vcd", "pai,x"], 'a=vcd,"pai,x"'),
        (0.5, "a=0.5"),
        (None, "a=null"),
        (True, "a=true"),
    ],
)
def test_no_value_can_be_taken_for_another_field(value: object, shown: str) -> None:
    assert pair("a", value) == shown
