"""What a request wants its answers to be: one of many fields, read as the source of a grammar.

    response_format      OpenAI's; of type text it asks for nothing
    structured_outputs   vLLM's, with one of six fields, and how JSON is written
    guided_*             what those were called before, as was structural_tag

Two of them at once are refused: nothing goes before another in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from pydantic import ValidationError

from saccade_server.api.body.parsing import load, refusal
from saccade_server.api.body.schemas import Sampled
from saccade_server.api.body.structured import (
    LONGEST_TEXT,
    ObjectResponse,
    SchemaResponse,
    StructuralTag,
)
from saccade_server.api.errors import BadRequest, unsupported
from saccade_server.api.grammar_work import Asked
from saccade_server.engine.request import EngineInfo
from saccade_server.grammars.errors import TOO_LARGE, GrammarError, Path
from saccade_server.grammars.expressions import of_choices, of_regex
from saccade_server.grammars.grammar import GrammarKind
from saccade_server.grammars.json_schema import WHITESPACE, Layout, of_object, of_schema
from saccade_server.grammars.languages import of_grammar
from saccade_server.grammars.tags import Tag, of_tags

OUTPUTS = "structured_outputs"
SPACES = "guided_whitespace_pattern"
JSON_KINDS = (GrammarKind.JSON_SCHEMA, GrammarKind.JSON_OBJECT)


@dataclass(frozen=True)
class Writing:
    """How JSON is written: what may be between its parts, and whether objects are closed."""

    pattern: str | None = None
    compact: bool = False
    closed: bool = False
    fields: tuple[str, ...] = field(default=(), compare=False)

    @property
    def layout(self) -> Layout:
        """The same, as grammars have it."""
        spaces = WHITESPACE if self.pattern is None else self.pattern
        return Layout(None if self.compact else spaces, self.closed)

    @property
    def key(self) -> str:
        """All of it in a text."""
        return msgspec.json.encode([self.pattern, self.compact, self.closed]).decode()

    @classmethod
    def of(cls, body: Sampled) -> Writing:
        """What a request says.

        Raises:
            BadRequest: two fields disagree.
        """
        given = body.structured_outputs
        patterns: dict[str, str] = {}
        flags: list[str] = []
        if body.guided_whitespace_pattern:
            patterns[SPACES] = body.guided_whitespace_pattern
        if given is not None:
            if given.whitespace_pattern is not None:
                patterns[f"{OUTPUTS}.whitespace_pattern"] = given.whitespace_pattern
            flags = [f"{OUTPUTS}.{name}" for name in FLAGS if getattr(given, name)]
        compact = f"{OUTPUTS}.{FLAGS[0]}" in flags
        named = [*patterns, *flags[:1]] if compact else [*patterns]
        if len(set(patterns.values())) + compact > 1:
            message = f"{' and '.join(named)} disagree; give one of them."
            raise BadRequest(message, param=named[0])
        pattern = next(iter(patterns.values()), None)
        closed = f"{OUTPUTS}.{FLAGS[1]}" in flags
        return cls(pattern, compact, closed, (*patterns, *flags))


FLAGS = ("disable_any_whitespace", "disable_additional_properties")


def asked_of(body: Sampled) -> Asked | None:
    """The one grammar that a request asks for.

    Raises:
        BadRequest: there are two, or there is none and something says how it is to be written.
    """
    writing = Writing.of(body)
    found = [*_of_response(body, writing), *_of_outputs(body, writing), *_of_older(body, writing)]
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        message = f"{first} and {second} both say what the answer must be; give one of them."
        raise BadRequest(message, param=second)
    if writing.fields and not (found and found[0].kind in JSON_KINDS):
        name = writing.fields[0]
        message = f"{name} says how JSON is written, and goes with a field that asks for some."
        raise BadRequest(message, param=name)
    return found[0] if found else None


def check_beside(info: EngineInfo, body: Sampled, asked: Asked, thinks: bool = False) -> None:
    """Refuse a grammar where the model cannot follow any, or where another field contradicts it.

    ``thinks``: an answer may have tokens before it, which no grammar holds.

    Raises:
        BadRequest: one does.
    """
    if not info.follows_grammars:
        message = (
            f"{asked.field} is not possible on this model: it has no token that ends an answer, or "
            "it is not known which texts its tokens are."
        )
        raise unsupported(asked.field, message)
    length, name = body.length
    if length == 0:
        message = f"{asked.field} says what an answer must be; with {name} 0 there is none."
        raise BadRequest(message, param=asked.field)
    if body.ignore_eos:
        message = f"With ignore_eos no answer ends; what {asked.field} allows does."
        raise BadRequest(message, param="ignore_eos")
    longest = None if thinks else asked.longest
    if longest is not None and longest < (body.min_tokens or 0):
        message = (
            f"min_tokens is {body.min_tokens}; what {asked.field} allows has {longest} bytes "
            "at most, and no more tokens."
        )
        raise BadRequest(message, param="min_tokens")


def _of_response(body: Sampled, writing: Writing) -> Iterator[Asked]:
    match body.response_format:
        case ObjectResponse():
            yield _object("response_format", "response_format", writing)
        case SchemaResponse() as given:
            param = "response_format.json_schema.schema"
            yield _schema("response_format", param, given.json_schema.schema_, writing)
        case StructuralTag() as given:
            at = "response_format"
            key = _sized(msgspec.json.encode(given.model_dump()).decode(), at)
            yield Asked(GrammarKind.STRUCTURAL_TAG, at, at, key, partial(_tag_source, given))


def _of_outputs(body: Sampled, writing: Writing) -> Iterator[Asked]:
    given = body.structured_outputs
    if given is None:
        return
    values = {name: getattr(given, name) for name in ("regex", "choice", "grammar")}
    values |= {"json": given.json_, "json_object": given.json_object or None}
    values |= {"structural_tag": given.structural_tag}
    for name, value in values.items():
        if value is not None:
            yield _asked(name, f"{OUTPUTS}.{name}", value, writing)


def _of_older(body: Sampled, writing: Writing) -> Iterator[Asked]:
    for name in ("json", "regex", "choice", "grammar", "json_object"):
        value = getattr(body, f"guided_{name}")
        if value:  # clients that have a field for everything leave it empty
            yield _asked(name, f"guided_{name}", value, writing)
    if body.structural_tag:
        yield _asked("structural_tag", "structural_tag", body.structural_tag, writing)


def _asked(name: str, field: str, value: Any, writing: Writing) -> Asked:
    match name:
        case "json":
            return _schema(field, field, value, writing)
        case "json_object":
            return _object(field, field, writing)
        case "regex":
            make = partial(of_regex, value)
            return Asked(GrammarKind.REGEX, field, field, value, make)
        case "grammar":
            make = partial(of_grammar, value)
            return Asked(GrammarKind.GRAMMAR, field, field, value, make)
        case "choice":
            key = msgspec.json.encode(value).decode()
            longest = max((len(choice.encode()) for choice in value), default=None)
            make = partial(of_choices, value)
            return Asked(GrammarKind.CHOICE, field, field, _sized(key, field), make, longest)
    return Asked(GrammarKind.STRUCTURAL_TAG, field, field, value, partial(_tag_text, value, field))


def _object(field: str, param: str, writing: Writing) -> Asked:
    make = partial(of_object, writing.layout)
    return Asked(GrammarKind.JSON_OBJECT, field, param, writing.key, make)


def _schema(field: str, param: str, schema: str | dict[str, Any], writing: Writing) -> Asked:
    layout = writing.layout
    if isinstance(schema, str):
        written = schema

        def make() -> str:
            return of_schema(_loaded(written, param), layout)
    else:
        written = _sized(msgspec.json.encode(schema).decode(), param)
        make = partial(of_schema, schema, layout)
    return Asked(GrammarKind.JSON_SCHEMA, field, param, f"{writing.key} {written}", make)


def _sized(text: str, param: str) -> str:
    if len(text) > LONGEST_TEXT:
        message = f"This may have {LONGEST_TEXT} characters as JSON."
        raise BadRequest(message, code=TOO_LARGE, param=param)
    return text


def _loaded(text: str, param: str) -> dict[str, Any]:
    """The object that a JSON text is of."""
    try:
        value = load(text.encode())
    except BadRequest as error:
        message = error.message.replace("The body", "The text")
        raise BadRequest(message, code=error.code, param=param) from None
    if not isinstance(value, dict):
        raise BadRequest("The text must be that of a JSON object.", param=param)
    return value


def _tag_text(text: str, param: str) -> str:
    value = _loaded(text, param)
    try:
        given = StructuralTag.model_validate({"type": "structural_tag"} | value)
    except ValidationError as error:
        found = refusal(error, value)
        inner = f"{param}.{found.param}" if found.param else param
        raise BadRequest(found.message, code=found.code, param=inner) from None
    return _tag_source(given)


def _tag_source(given: StructuralTag) -> str:
    """The source of tags among free text, in either form.

    Raises:
        GrammarError: with a path that begins at the object of that form.
    """
    places: list[Path]
    if given.format is not None:
        if given.structures is not None or given.triggers is not None:
            raise GrammarError("structures and triggers are of another form than format.")
        found = given.format
        tags = [Tag(tag.begin, tag.content.json_schema, tag.end) for tag in found.tags]
        places = [("format", "tags", at) for at in range(len(tags))]
        inside: Path = ("content", "json_schema")
        triggers, required = found.triggers, bool(found.at_least_one)
        repeated = not found.stop_after_first
    else:
        if given.structures is None or given.triggers is None:
            raise GrammarError("Give structures and triggers, or a format.")
        tags = [Tag(tag.begin, tag.schema_ or {}, tag.end) for tag in given.structures]
        places = [("structures", at) for at in range(len(tags))]
        inside = ("schema",)
        triggers, required, repeated = given.triggers, False, True
    try:
        return of_tags(tags, triggers=triggers, required=required, repeated=repeated)
    except GrammarError as error:
        at, *rest = error.path or ("",)
        if not isinstance(at, int):
            raise
        path = (*places[at], *(inside if rest else ()), *rest)
        raise GrammarError(error.message, path, error.code) from None
