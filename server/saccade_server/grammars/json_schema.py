"""JSON schemas as grammars."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from saccade_server.grammars.checking import TOO_LONG, TOO_MUCH, wrong_with
from saccade_server.grammars.errors import GrammarError, Path
from saccade_server.grammars.schema_endings import check_ends
from saccade_server.grammars.schema_fault import fault
from saccade_server.grammars.schema_reader import Schema, SchemaReader
from saccade_server.grammars.source import HEADER
from saccade_server.grammars.telling import keyword, refusal
from saccade_server.grammars.white_space import white_space

WHITESPACE: Final = " "
"""What may stand, once, between the parts of a JSON text. White space costs tokens, and without
bounds is where models loop; whoever wants lines and indentation says so."""


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

    The schema is read as draft 2020-12. Raises GrammarError, its path within the schema, for what
    cannot be honoured.
    """
    return _source(json_part(schema, layout))


def of_object(layout: Layout = LAYOUT) -> str:
    """The source of a grammar of any JSON object."""
    return of_schema({"type": "object"}, layout)


def json_part(schema: Schema, layout: Layout) -> str:
    """A schema as a part of a source. Raises GrammarError as ``of_schema`` does."""
    document = _reader(schema, layout).whole()
    if layout.whitespace not in (None, WHITESPACE):
        layout = replace(layout, whitespace=white_space(layout.whitespace))
    part = _part(document, layout)
    wrong = wrong_with(_source(part))
    if wrong is None:
        check_ends(document)
        return part
    if wrong in (TOO_LONG, TOO_MUCH):
        raise refusal(wrong)
    if wrong_with(_source(_part({"type": "object"}, layout))) is not None:
        refused = refusal(wrong)
        message = f"The pattern of white space cannot be used. {refused.message}"
        raise GrammarError(message, code=refused.code)

    def wrong_parts(paths: Sequence[Path]) -> str | None:
        return wrong_with(_source(_part(_reader(schema, layout).several(paths), layout)))

    path, said = fault(schema, wrong, wrong_parts, _reader(schema, layout).target)
    raise refusal(said, _keyword_below(schema, path, said))


def _keyword_below(schema: Any, path: Path, said: str) -> Path:
    """The path of the keyword that the words are about, where it is in the part at ``path``."""
    for step in path:
        schema = schema[step]
    word = keyword(said, schema) if isinstance(schema, Mapping) else None
    return path if word is None else (*path, word)


def _reader(schema: Schema, layout: Layout) -> SchemaReader:
    return SchemaReader(schema, closed=layout.closed)


def _source(part: str) -> str:
    return f"{HEADER}start: {part}\n"


def _part(document: dict[str, Any], layout: Layout) -> str:
    options = {"whitespace_flexible": False, "whitespace_pattern": layout.whitespace}
    return "%json " + json.dumps({**document, "x-guidance": options}, ensure_ascii=False)
