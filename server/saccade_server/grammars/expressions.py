"""Regular expressions and fixed choices as grammars."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from saccade_server.grammars.checking import check
from saccade_server.grammars.errors import TOO_LARGE, UNSUPPORTED, GrammarError
from saccade_server.grammars.source import HEADER, quoted, slashed

MOST_CHOICES: Final = 10_000
_VERBOSE: Final = re.compile(r"(?:^|[^\\])(?:\\\\)*\(\?[a-zA-Z]*x")
"""Begins an expression of several lines with comments."""


def of_regex(expression: str) -> str:
    """The source of a grammar of the texts that ``expression`` matches as a whole.

    Raises GrammarError for look-around, back references and what else is no regular expression.
    """
    if not expression:
        raise GrammarError("The regular expression is empty.")
    if "\n" in expression and _VERBOSE.search(expression):
        message = "The flag x is supported for a regular expression of one line only."
        raise GrammarError(message, code=UNSUPPORTED)
    source = f"{HEADER}start: {slashed(expression)}\n"
    check(source)
    return source


def of_choices(texts: Sequence[str]) -> str:
    """The source of a grammar of exactly these texts.

    Raises GrammarError, its path an index, for an empty text or one that is there twice.
    """
    if not texts:
        raise GrammarError("There must be at least one choice.")
    if len(texts) > MOST_CHOICES:
        raise GrammarError(f"There are more than {MOST_CHOICES} choices.", code=TOO_LARGE)
    seen: set[str] = set()
    for index, text in enumerate(texts):
        if not text:
            raise GrammarError("A choice must not be empty.", (index,))
        if text in seen:
            raise GrammarError("This choice is there already.", (index,))
        seen.add(text)
    # One terminal: alternatives of rules are limited to some hundreds at one place.
    source = f"{HEADER}start: CHOICE\nCHOICE: {' | '.join(map(quoted, texts))}\n"
    check(source)
    return source
