"""Hostile grammars: refused or followed, in bounded time, whatever they do to the compiler."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLParserLimits

from saccade_server.grammars import checking, trial
from saccade_server.grammars.checking import check, together, wrong_with
from saccade_server.grammars.compiling import Compiler, Prototype
from saccade_server.grammars.errors import TOO_LARGE, GrammarError, GrammarFailed
from saccade_server.grammars.expressions import of_choices, of_regex
from saccade_server.grammars.grammar import Grammar, GrammarKind
from saccade_server.grammars.json_schema import of_schema
from saccade_server.grammars.languages import of_grammar
from saccade_server.grammars.matcher import Matcher
from saccade_server.grammars.source import HEADER
from saccade_server.grammars.vocabulary import BYTES
from saccade_testing.drawn_texts import byte_writer

PATTERNS = {"allOf": [{"type": "string", "pattern": f"a{n}"} for n in range(30)]}
CHAIN = "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(3000)) + '\nr3000: "a"'
EBNF = "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(3000)) + '\nr3000 ::= "a"'
HOSTILE = {
    "a product of patterns": lambda: of_schema(PATTERNS),
    "a chain of rules": lambda: of_grammar(CHAIN),
    "a chain of rules in EBNF": lambda: of_grammar(EBNF),
    "brackets": lambda: of_grammar("root ::= " + "(" * 3000),
    "groups": lambda: of_regex("(" * 20_000 + "a" + ")" * 20_000),
    "doubling": lambda: of_grammar(
        "start: A0\n" + "\n".join(f"A{n}: A{n + 1} A{n + 1}" for n in range(40)) + '\nA40: "a"'
    ),
    "text": lambda: of_grammar("start: " + '"a" ' * 30_000),
    "many rules": lambda: of_grammar(
        "start: " + " | ".join(f"r{n}" for n in range(3000)) + "\n"
        + "\n".join(f'r{n}: "k{n}" r{n * 17 % 3000} | "e{n}"' for n in range(3000))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_too_much_is_refused_in_time(name):
    began = time.monotonic()
    with pytest.raises(GrammarError) as caught:
        HOSTILE[name]()
    assert time.monotonic() - began < 20  # a second of CPU time, on a machine that is busy
    assert caught.value.message.endswith(".")
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("expression", ["(a{1000}){1000}", "(x+x+)+y", "(a|b)*a(a|b){14}"])
def test_repetitions_are_no_danger(expression):
    began = time.monotonic()
    of_regex(expression)
    assert time.monotonic() - began < 20


def test_a_process_that_ended_is_started_again():
    check(f'{HEADER}start: "one"\n')
    process = checking._WORKER._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    check(f'{HEADER}start: "two"\n')
    assert checking._WORKER._process is not process


@pytest.mark.parametrize("length", [1, 300_000])
def test_a_process_that_somebody_stopped_is_given_up(monkeypatch, length):
    """Whether the text fits into the pipe or not; who comes next has another one."""
    check(f'{HEADER}start: "ten"\n')
    process = checking._WORKER._process
    monkeypatch.setattr(checking, "PATIENCE", 0.3)
    os.kill(process.pid, signal.SIGSTOP)
    while " T " not in Path(f"/proc/{process.pid}/stat").read_text():  # it stops on its own core
        time.sleep(0.001)
    assert wrong_with(f'{HEADER}start: "eleven{"n" * length}"\n') == checking.TOO_LONG
    assert process.poll() == -signal.SIGKILL
    monkeypatch.undo()
    check(f'{HEADER}start: "twelve{length}"\n')


def test_what_is_known_is_not_tried_again(monkeypatch):
    source = f'{HEADER}start: "three"\n'
    assert wrong_with(source) is None
    monkeypatch.setattr(checking._WORKER, "_asked", None)
    assert wrong_with(source) is None


def test_many_checks_have_one_budget():
    """A list of tools has a schema each; what one request may take is not that many times more."""
    done: list[object] = []

    def go_through_all():
        for n in range(40):
            done.append(of_schema({"type": "integer", "multipleOf": 9973 - 2 * n}))

    with together(1e-6), pytest.raises(GrammarError, match="too long to compile") as caught:
        go_through_all()
    assert (len(done), caught.value.code) == (1, TOO_LARGE)
    with together(60.0):
        go_through_all()  # nothing of before is remembered as slow
    assert len(done) == 41
    of_schema({"type": "integer", "multipleOf": 9001})  # and behind it there is no limit


def test_a_check_that_is_broken_off_is_paid_too():
    with together(1.5), pytest.raises(GrammarError):
        of_schema(PATTERNS)
    slower = {"allOf": [{"type": "string", "pattern": f"b{n}"} for n in range(30)]}
    began = time.monotonic()
    with together(0.5):
        for schema in (PATTERNS | {"title": "again"}, slower, slower | {"minLength": 1}):
            with pytest.raises(GrammarError):
                of_schema(schema)
        assert checking._exhausted()
    assert not checking._exhausted()
    assert time.monotonic() - began < 20


def test_a_place_where_nothing_follows_is_found():
    with pytest.raises(GrammarError, match="nothing can follow"):
        check(f'{HEADER}start: "a" B\nB: /[a-c]x/ & /[d-f]x/\n')


@pytest.mark.parametrize(
    ("texts", "path", "words"),
    [([], (), "at least one"), (["a", ""], (1,), "empty"), (["a", "b", "a"], (2,), "already")],
)
def test_choices_that_are_none(texts, path, words):
    with pytest.raises(GrammarError, match=words) as caught:
        of_choices(texts)
    assert caught.value.path == path


def test_too_many_choices():
    with pytest.raises(GrammarError) as caught:
        of_choices([str(n) for n in range(10_001)])
    assert caught.value.code == TOO_LARGE


# -- answers -----------------------------------------------------------------------------------


def test_states_that_other_answers_used_up_are_no_obstacle(monkeypatch):
    """Copies share them: after enough answers, the next one makes do with its own."""
    long = {name: {"type": "string", "minLength": 1000 + ord(name)} for name in "abcd"}
    source = of_schema({"type": "object", "properties": long})
    few = LLParserLimits(max_lexer_states=10_000, verbose_errors=False)
    monkeypatch.setattr(trial, "LIMITS", few)
    prototype = Prototype(source, BYTES)
    renewed = [follow(prototype, name) for name in (b"a", b"b", b"c", b"d")]
    assert renewed == [False, True, True, True]


def follow(prototype, name):
    """Whether an answer with a long text of this name needed a matcher of its own."""
    matcher = Matcher(prototype, BYTES)
    write(matcher, b'{"' + name + b'":"' + b"x" * 800)
    return matcher._renewed


def test_masks_have_a_budget_of_time(monkeypatch):
    monkeypatch.setattr("saccade_server.grammars.matcher.FIRST_MASK_SECONDS", 0.0)
    monkeypatch.setattr("saccade_server.grammars.matcher.MASK_SECONDS", 0.0)
    matcher = byte_writer().matcher(of_regex("[a-z]*"))
    with pytest.raises(GrammarFailed, match="too slow"):
        matcher.fill(np.zeros(BYTES.words, np.int32))


def test_a_grammar_that_grows_too_ambiguous_fails_in_the_answer():
    matcher = byte_writer().matcher(f'{HEADER}start: e\ne: e e | e e e | "a" | ""\n')
    with pytest.raises(GrammarFailed, match="too complex"):
        write(matcher, b"a" * 500)


def write(matcher, text):
    row = np.zeros(BYTES.words, np.int32)
    for byte in text:
        matcher.fill(row)
        matcher.accept(byte)


# -- compilers ---------------------------------------------------------------------------------


def grammar(expression):
    return Grammar(GrammarKind.REGEX, of_regex(expression))


def test_a_source_is_compiled_once_for_all_who_ask(monkeypatch):
    made = []

    def prototype(source, vocabulary):
        made.append(source)
        time.sleep(0.05)
        return Prototype(source, vocabulary)

    monkeypatch.setattr("saccade_server.grammars.compiling.Prototype", prototype)
    compiler = Compiler(BYTES)
    futures = [compiler.start(grammar("ab")) for _ in range(5)]
    matchers = [future.result() for future in futures]
    assert len(made) == 1
    matchers[0].accept(ord("a"))
    with pytest.raises(GrammarFailed):  # the others are where they were
        matchers[1].accept(ord("b"))
    assert compiler.start(grammar("ab")).done()
    compiler.close()


def test_what_was_not_asked_for_the_longest_is_forgotten_first():
    compiler = Compiler(BYTES, cache_bytes=7 * 1024 * 1024)  # of 2 MB and some each
    for expression in ("a", "b", "c"):
        compiler.start(grammar(expression)).result()
    compiler.start(grammar("a")).result()
    compiler.start(grammar("d")).result()
    kept = [grammar(expression).source in compiler._prototypes for expression in "abcd"]
    assert kept == [True, False, True, True]
    compiler.close()


def test_a_source_that_does_not_compile_is_an_error_of_its_answer():
    compiler = Compiler(BYTES)
    for _ in range(2):
        future = compiler.start(Grammar(GrammarKind.GRAMMAR, f"{HEADER}start: /(/\n"))
        with pytest.raises(GrammarFailed, match="unclosed group"):
            future.result()
    compiler.close()
