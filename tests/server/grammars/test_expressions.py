"""Regular expressions and fixed choices: exactly the texts that they are written for."""

import pytest

from saccade_server.grammars.errors import UNSUPPORTED, GrammarError
from saccade_server.grammars.expressions import of_choices, of_regex
from saccade_testing.drawn_texts import accepts, byte_writer

ODD = ['a"b', "a\\b", "a\\nb", "a\nb", "\t\r\b\f", "\x00", "\x01", "\x7f", "\u2028", "\ufeffx",
       "\U0001f600", "a/b", "//x", "#c", "%json", "\\u0041", "\\", '"i', "${x}", " "]  # fmt: skip


def has(source, *texts):
    return [accepts(byte_writer(), source, text) for text in texts]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_a_choice_is_its_text_whatever_it_is_written_with(text):
    source = of_choices([text, "other"])
    assert has(source, text, "other") == [True, True]
    assert not any(has(source, text + "x", text[:-1], ""))


@pytest.mark.parametrize(
    ("expression", "inside", "outside"),
    [
        ("a/b", ["a/b"], ["ab", "a\\/b"]),
        (r"a\/b", ["a/b"], ["a\\/b"]),
        ("[/]", ["/"], ["\\"]),
        (r"\\/", ["\\/"], ["/"]),
        ("a\nb", ["a\nb"], ["anb", "a\\nb"]),
        ("a\\\nb", ["a\nb"], ["a\\nb", "anb", "a\\\nb"]),
        (r"a\nb", ["a\nb"], ["anb"]),
        (r"a\\nb", ["a\\nb"], ["a\nb"]),
        ("(?x) a b # c", ["ab"], ["a b"]),
        ("\\(?x\n", ["(x\n", "x\n"], ["x"]),
        ("^a|b$", ["a", "b"], ["ab"]),
    ],
)
def test_an_expression_means_what_it_means_elsewhere(expression, inside, outside):
    source = of_regex(expression)
    assert all(has(source, *inside))
    assert not any(has(source, *outside))


@pytest.mark.parametrize("expression", ["(?x) a # b\n c", "(?ix)a\n", "(a|(?x:b\n))", "\\\\(?x)\n"])
def test_comments_of_several_lines_are_refused(expression):
    """A line's end is told to llguidance as an escape, which would not end a comment."""
    with pytest.raises(GrammarError, match="flag x") as caught:
        of_regex(expression)
    assert caught.value.code == UNSUPPORTED
