"""Grammars that are given as such: Lark's syntax, or the EBNF of llama.cpp (GBNF) and XGrammar."""

from __future__ import annotations

import re
from typing import Final

from saccade_server.grammars.checking import check, converted
from saccade_server.grammars.errors import TOO_LARGE, UNSUPPORTED, GrammarError
from saccade_server.grammars.source import HEADER

LONGEST: Final = 64 * 1024
"""Characters of a grammar."""

_EBNF: Final = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_START: Final = re.compile(r"^[ \t]*start[ \t]*:(?!:)", re.MULTILINE)
_OPTIONS: Final = re.compile(r"^[ \t]*%llguidance[ \t]*\{\s*\}[ \t]*$", re.MULTILINE)
_TEXTS: Final = re.compile(
    r"""
      //[^\n]* | \#[^\n]*                       # comments
    | "(?:\\.|[^"\\\n])*"                       # texts
    | /(?:\\.|[^/\\\n])+/                       # expressions
    """,
    re.VERBOSE,
)
_REFUSED: Final = (
    (re.compile(r"<"), "Tokens by name or number (<...>) are not supported: an answer is text."),
    (re.compile(r"%json\b"), "%json is not supported here: a schema has its own field."),
    (re.compile(r"%llguidance\b"), "Options of %llguidance are not supported."),
    (re.compile(r"@"), "There are no other grammars to refer to with @."),
    (
        re.compile(r"\b(?:stop|stop_capture|max_tokens|temperature)\s*="),
        "stop, max_tokens and temperature of single rules are not supported.",
    ),
)


def of_grammar(text: str) -> str:
    """The source of a grammar of what ``text`` derives: from ``start`` in Lark, ``root`` in EBNF.

    Raises GrammarError for what is neither, and for what reaches beyond text: tokens, options.
    """
    if len(text) > LONGEST:
        raise GrammarError(f"The grammar is longer than {LONGEST} characters.", code=TOO_LARGE)
    lark = text
    if not _START.search(text):
        if not _EBNF.search(text):
            raise GrammarError(
                "The grammar has no rule to begin with: start in Lark's syntax (start: ...), root "
                "in EBNF (root ::= ...)."
            )
        lark = converted(text)
    lark = _OPTIONS.sub("", lark)
    bare = _TEXTS.sub(" ", lark)
    for pattern, message in _REFUSED:
        if pattern.search(bare):
            raise GrammarError(message, code=UNSUPPORTED)
    source = f"{HEADER}{lark}\n"
    check(source)
    return source
