"""Text that a log may hold: one line, nothing that a terminal would obey, and an end.

What clients and files say reaches messages, if only as a name or an error's words. A line break in
it would forge a record, an escape sequence would act on the terminal of whoever reads.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

LONGEST_MESSAGE = 8192
LONGEST_VALUE = 1024
MOST_ITEMS = 32

# C0 and C1 controls, what Unicode breaks lines at, what turns the direction of text, surrogates.
UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
NEEDS_QUOTES = re.compile(r'[\s"=,\\]')


def bounded(text: str, limit: int) -> str:
    """The first ``limit`` characters, and how many there were more."""
    more = len(text) - limit
    return text if more <= 0 else f"{text[:limit]}… ({more} characters more)"


def one_line(text: str, limit: int = LONGEST_MESSAGE) -> str:
    """``text``, bounded, with what is not simply shown as Python's escapes."""
    return UNSAFE.sub(_escaped, bounded(text, limit))


def plain(value: Any) -> Any:
    """A field's value as JSON can have it: bounded texts, finite numbers, flat lists of these.

    Of anything else only the type is named; its own words could be anybody's.
    """
    match value:
        case None | bool() | int():
            return value
        case float():
            return round(value, 6) if math.isfinite(value) else None
        case str():
            return bounded(str(value), LONGEST_VALUE)
        case list() | tuple():
            return [plain(item) for item in value[:MOST_ITEMS]]
    return type(value).__name__


def pair(name: str, value: Any) -> str:
    """``name=value``, quoted if the value alone could be taken for something else."""
    value = plain(value)
    if isinstance(value, list):
        return f"{name}={','.join(_worded(item) for item in value)}"
    return f"{name}={_worded(value)}"


def _worded(value: Any) -> str:
    if isinstance(value, str):
        odd = not value or NEEDS_QUOTES.search(value) or UNSAFE.search(value)
        return UNSAFE.sub(_escaped, json.dumps(value, ensure_ascii=False)) if odd else value
    return json.dumps(value)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
