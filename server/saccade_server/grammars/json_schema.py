"""JSON schemas as grammars."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from saccade_server.grammars.checking import check
from saccade_server.grammars.source import HEADER

Schema: TypeAlias = Mapping[str, Any] | bool

WHITESPACE: Final = r" |\r?\n(?: {0,40}|\t{0,10})"
"""What may stand, once, between the parts of a JSON text: a space, or a line's end and the
indentation of the next. Whitespace without bounds is where models loop."""


@dataclass(frozen=True)
class Layout:
    """How the JSON of an answer is laid out.

    ``whitespace``: a regular expression of what may stand between its parts; None: nothing.
    ``closed``: objects that list properties have no others, unless they say so.
    """

    whitespace: str | None = WHITESPACE
    closed: bool = False


LAYOUT: Final = Layout()


def of_schema(schema: Schema, layout: Layout = LAYOUT) -> str:
    """The source of a grammar whose texts are JSON and valid against ``schema``.

    Raises GrammarError, its path within the schema, for what cannot be honoured.
    """
    source = f"{HEADER}start: {json_part(schema, layout)}\n"
    check(source)
    return source


def of_object(layout: Layout = LAYOUT) -> str:
    """The source of a grammar of any JSON object."""
    return of_schema({"type": "object"}, layout)


def json_part(schema: Schema, layout: Layout) -> str:
    """A schema inside a source."""
    rules = dict(schema) if isinstance(schema, Mapping) else ({} if schema else {"enum": []})
    options = {"whitespace_flexible": False, "whitespace_pattern": layout.whitespace}
    return "%json " + json.dumps({**rules, "x-guidance": options}, ensure_ascii=False)
