"""Masks, the gate of reasoning, counts and failures of a matcher over bytes."""

import numpy as np
import pytest

from saccade_server.grammars.compiling import Compiler
from saccade_server.grammars.errors import GrammarFailed
from saccade_server.grammars.expressions import of_regex
from saccade_server.grammars.grammar import Grammar, GrammarCount, GrammarKind, Thinking
from saccade_server.grammars.matcher import Matcher
from saccade_server.grammars.vocabulary import Vocabulary

OTHER_END, OPENS, CLOSES, SIZE = 257, 258, 259, 301
BYTE_TOKENS = [bytes([byte]) for byte in range(256)]
TOKENS = [*BYTE_TOKENS, b"b", b"<end>", b"<think>", b"</think>", b"bb", b"\n\n", b"\n\n\n"]
LINE, LINES = ord("\n"), 261
VOCABULARY = Vocabulary.of(TOKENS, (OPENS, CLOSES), (256, OTHER_END), SIZE)


def matcher(expression: str, thinking: Thinking | None = None) -> Matcher:
    compiler = Compiler(VOCABULARY)
    try:
        source = of_regex(expression)
        return compiler.start(Grammar(GrammarKind.REGEX, source, thinking)).result()
    finally:
        compiler.close()


def allowed(state: Matcher) -> set[int]:
    row = np.full(VOCABULARY.words, 0x55555555, np.int32)
    number = state.fill(row)
    bits = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
    assert number == len(bits)
    return set(bits.tolist())


def test_only_what_the_grammar_allows_and_only_ends_behind_it():
    state = matcher("a(b|bb)")
    assert allowed(state) == {ord("a")}
    assert not state.complete
    state.accept(ord("a"))
    assert allowed(state) == {ord("b"), 260}  # not 256: an end, although its bytes are "b"
    state.accept(260)
    assert allowed(state) == {256, OTHER_END}
    assert state.complete
    assert state.finished
    state.accept(OTHER_END)
    assert state.count == GrammarCount(constrained=2, forced=1, complete=True)


def test_an_answer_may_end_or_go_on():
    state = matcher("a*")
    assert allowed(state) == {ord("a"), 256, OTHER_END}
    assert state.complete
    assert not state.finished
    assert state.count == GrammarCount(0, 0, True)


def test_special_tokens_are_no_text():
    assert not {OPENS, CLOSES} & allowed(matcher("(?s:.*)"))
    assert allowed(matcher("<think>")) == {ord("<")}


def test_reasoning_that_has_begun_is_free_until_it_closes():
    state = matcher("ab", Thinking(opens=None, closes=CLOSES))
    free = set(range(SIZE)) - {256, OTHER_END}
    assert allowed(state) == free
    for token in (ord("z"), OPENS, 300):
        state.accept(token)
        assert allowed(state) == free
        assert not state.complete
    state.accept(CLOSES)
    assert allowed(state) == {ord("a"), LINE, LINES}
    for token in b"ab":
        state.accept(token)
    assert state.count == GrammarCount(2, 0, True)


def test_reasoning_may_open_or_not():
    thinking = Thinking(opens=OPENS, closes=CLOSES)
    thinks, answers = matcher("ab", thinking), matcher("ab", thinking)
    assert allowed(thinks) == allowed(answers) == {ord("a"), OPENS}
    thinks.accept(OPENS)
    assert len(allowed(thinks)) == SIZE - 2
    thinks.accept(CLOSES)
    assert allowed(thinks) == {ord("a"), LINE, LINES}
    answers.accept(ord("a"))
    assert allowed(answers) == {ord("b")}


def test_two_line_ends_may_stand_behind_the_reasoning():
    state = matcher("ab", Thinking(opens=None, closes=CLOSES))
    state.accept(CLOSES)
    state.accept(LINE)
    assert allowed(state) == {ord("a"), LINE}
    state.accept(LINE)
    assert allowed(state) == {ord("a")}
    for token in b"ab":
        state.accept(token)
    assert state.count == GrammarCount(2, 1, True)  # forced only where a mask was asked for
    both = matcher("ab", Thinking(opens=None, closes=CLOSES))
    both.accept(CLOSES)
    both.accept(LINES)
    assert allowed(both) == {ord("a")}
    with pytest.raises(GrammarFailed):
        both.accept(LINE)


def test_an_answer_does_not_end_inside_its_reasoning():
    state = matcher("a*", Thinking(opens=None, closes=CLOSES))
    with pytest.raises(GrammarFailed, match="does not allow"):
        state.accept(256)


@pytest.mark.parametrize("token", [ord("b"), 256, OPENS, 300])
def test_a_token_that_is_not_allowed_is_an_error(token):
    state = matcher("aa")
    state.accept(ord("a"))
    with pytest.raises(GrammarFailed, match="does not allow"):
        state.accept(token)


def test_nothing_comes_behind_an_end():
    state = matcher("a*")
    state.accept(256)
    with pytest.raises(GrammarFailed):
        state.accept(ord("a"))


@pytest.mark.parametrize(
    "row", [np.zeros(9, np.int32), np.zeros(10, np.int64), np.zeros(20, np.int32)[::2]]
)
def test_a_row_of_another_shape_is_a_mistake(row):
    with pytest.raises(ValueError, match=r"int32 \[10\]|contiguous"):
        matcher("a").fill(row)
