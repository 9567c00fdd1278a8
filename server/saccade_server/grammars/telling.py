"""What llguidance says of a source, as sentences for whoever wrote the schema or expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from saccade_server.grammars.errors import INVALID, TOO_LARGE, UNSUPPORTED, GrammarError, Path

_WHERE: Final = re.compile(r"^(?:at )?\d+\(\d+\): (?:failed to compile JSON schema: )?")
_KEYWORDS: Final = re.compile(r'Unimplemented keys: \["([^"]+)"')

_SENTENCES: Final = (
    (
        UNSUPPORTED,
        _KEYWORDS,
        r"The keyword \1 cannot be enforced: leave it out, or say it another way.",
    ),
    (
        UNSUPPORTED,
        re.compile(r"oneOf constraints are not supported"),
        "The keyword oneOf cannot be enforced where its alternatives may overlap: give each a "
        "required property with a const of its own, or use anyOf.",
    ),
    (
        INVALID,
        re.compile(r"Unsatisfiable schema: (.*)"),
        r"No answer is valid against the schema: \1.",
    ),
    (
        TOO_LARGE,
        re.compile(r"schema too large"),
        "The schema is too large with its alternatives multiplied.",
    ),
    (
        UNSUPPORTED,
        re.compile(r"Unknown format: (.*)"),
        r"The format \1 cannot be enforced: leave it out.",
    ),
    (
        UNSUPPORTED,
        re.compile(r"look-?around", re.IGNORECASE),
        "The regular expression uses look-around, a word's boundary or an anchor in its middle, "
        "which cannot be enforced.",
    ),
    (
        INVALID,
        re.compile(r"(?:regex parse error|invalid regex).*\berror: ([^\n]+)", re.DOTALL),
        r"The regular expression cannot be read: \1.",
    ),
    (
        TOO_LARGE,
        re.compile(r"Unable to determine if regex is empty"),
        "The regular expressions that must hold together are too complex.",
    ),
    (
        TOO_LARGE,
        re.compile(r"Current row has|Too many items"),
        "There are too many ways to go on at one place: properties that may be left out and "
        "alternatives count, about 240 of them are possible.",
    ),
    (
        TOO_LARGE,
        re.compile(r"too complex to find the tokens|fuel exhausted|too big"),
        "The regular expression, or what must hold together, is too complex.",
    ),
    (
        UNSUPPORTED,
        re.compile(r"only supported when all keys listed"),
        "The keywords minProperties and maxProperties can be enforced only where all listed "
        "properties are required.",
    ),
    (
        UNSUPPORTED,
        re.compile(r"circular references with sibling keys"),
        "A reference back to what it is a part of cannot be enforced with keywords beside it.",
    ),
    (
        UNSUPPORTED,
        re.compile(r"are not disjoint"),
        "The keyword patternProperties cannot be enforced where a name may match two of them.",
    ),
    (TOO_LARGE, re.compile(r"recursion limit exceeded"), "The schema is nested too deeply."),
    (
        TOO_LARGE,
        re.compile(r"^(.*takes too (?:long|much memory) to compile|.*is longer than.*)$"),
        r"\1.",
    ),
)


def refusal(message: str, path: Path = ()) -> GrammarError:
    """An error in a sentence, without the place in a source that no user has seen."""
    for code, pattern, sentence in _SENTENCES:
        match = pattern.search(message)
        if match:
            return GrammarError(_capital(match.expand(sentence)), path, code)
    line = _WHERE.sub("", message).split("\n", 1)[0].strip().rstrip(".")
    return GrammarError(_capital(f"{line}."), path)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def keyword(message: str, schema: Mapping[str, Any]) -> str | None:
    """The keyword of a schema that a message about it names, if it names one."""
    named = _KEYWORDS.findall(message)
    if "regex" in message:
        named.append("pattern")
    named += re.findall(r"[$\w]+", message.split("\n", 1)[0])
    return next((word for word in named if word in schema), None)
