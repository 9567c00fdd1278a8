"""What an answer may call, and in which form: the grammar that holds it, the reader that tells it.

What the model's own template writes around a call is a part of the grammar, so that the tokens are
those that the model would have drawn. Free text is free up to the marker of a call; where a format
has no marker, an answer is calls from its first character on, or a text that does not begin as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from saccade_server.api.body.schemas import ChatRequest
from saccade_server.api.body.structured import ObjectResponse, SchemaResponse
from saccade_server.api.errors import BadRequest
from saccade_server.api.grammar_work import Asked, written
from saccade_server.api.structured import Writing
from saccade_server.api.tools.offer import Offer, offer_of, schema_of
from saccade_server.api.tools.reader import ToolReader
from saccade_server.grammars.errors import INVALID, GrammarError
from saccade_server.grammars.grammar import GrammarKind
from saccade_server.grammars.json_schema import LAYOUT, json_part, of_schema
from saccade_server.grammars.source import slashed
from saccade_server.grammars.tags import Tag, of_tags
from saccade_server.models.prompt import PromptProcessor
from saccade_server.models.tool_format import ToolFormat

Schema = Mapping[str, Any]
ANY_OBJECT: Schema = {"type": "object"}
NO_CALL = r"[ \t\r\n]*([^{ \t\r\n](?s:.)*)?"
"""A text that nobody takes for a call of a format without markers."""


@dataclass(frozen=True)
class Calls:
    """What the answers to a request may call, and what they may be instead.

    ``parallel``: several calls at once. ``instead``: a schema of an answer that calls nothing; None
    for any text. ``shown``: texts of the special tokens among the markers.
    """

    offer: Offer
    form: ToolFormat
    parallel: bool = True
    instead: Schema | None = None
    shown: Mapping[int, str] = field(default_factory=dict)

    def reader(self, prompt: object) -> ToolReader:
        """What tells the calls of one answer to ``prompt``."""
        return ToolReader(self.form, self.offer.names, self.shown)

    @property
    def several(self) -> bool:
        """Whether there may be more than one."""
        return self.parallel and not self.offer.named and self.form.apart is not None

    @property
    def asked(self) -> Asked | None:
        """The grammar; None if an answer may be whatever the model makes of it."""
        offer = self.offer
        strict = any(offer.functions[at].strict for at in offer.callable)
        held = offer.required or offer.limited or strict or self.instead is not None
        if not held and self.parallel:
            return None
        schemas = [self.schema(at) for at in offer.callable]
        names = [offer.functions[at].name for at in offer.callable]
        how = [offer.callable, offer.required, self.several, self.form]
        key = msgspec.json.encode([names, schemas, self.instead, *how]).decode()
        return Asked(GrammarKind.TOOLS, "tools", "tools", key, partial(source_of, self))

    @property
    def readable(self) -> Asked:
        """Whether each schema is one that some arguments follow, where no grammar holds them."""
        schemas = [(at, schema_of(self.offer.functions[at])) for at in self.offer.callable]
        key = msgspec.json.encode(["readable", schemas]).decode()
        return Asked(GrammarKind.TOOLS, "tools", "tools", key, partial(_read, schemas))

    @property
    def tags(self) -> list[Tag]:
        """The calls that there may be, each with all that stands around it."""
        made = []
        for at in self.offer.callable:
            before, behind = self.form.around(self.offer.functions[at].name)
            tag = Tag(self.form.lead + before, self.schema(at), behind + self.form.trail)
            made.append(tag)
        return made

    @property
    def objects(self) -> list[Schema]:
        """The same calls as schemas, where their format is a JSON object and nothing else."""
        keys = (self.form.name_key, self.form.arguments_key)
        return [
            {
                "type": "object",
                "properties": {
                    keys[0]: {"const": self.offer.functions[at].name},
                    keys[1]: self.schema(at),
                },
                "required": list(keys),
                "additionalProperties": False,
            }
            for at in self.offer.callable
        ]

    def schema(self, at: int) -> Schema:
        """What the arguments of a tool must be."""
        function = self.offer.functions[at]
        return schema_of(function) if self.offer.required or function.strict else ANY_OBJECT


def calls_of(prompts: PromptProcessor, body: ChatRequest, asked: Asked | None) -> Calls | None:
    """What a request's answers may call; None if nothing.

    Args:
        prompts: of the model.
        body: the request.
        asked: what it wants its answers to be, tools apart.

    Raises:
        BadRequest: that cannot be had beside tools.
    """
    offer = offer_of(prompts, body.tools, body.tool_choice)
    if offer is None or prompts.tool_format is None:
        return None
    instead: Schema | None = None
    match body.response_format:
        case ObjectResponse():
            instead = ANY_OBJECT
        case SchemaResponse() as given:
            instead = given.json_schema.schema_
    if asked is not None and instead is None:
        message = (
            f"{asked.field} says what the whole answer must be, and tools may be called; of such "
            "fields only response_format of type json_schema or json_object goes with tools."
        )
        raise BadRequest(message, param=asked.field)
    for name in Writing.of(body).fields:
        message = f"{name} is not possible beside tools: calls are written as the model has them."
        raise BadRequest(message, param=name)
    parallel = body.parallel_tool_calls is not False
    return Calls(offer, prompts.tool_format, parallel, instead, prompts.tool_tokens)


def source_of(calls: Calls) -> str:
    """The source of the grammar of answers.

    Raises:
        GrammarError: with a path that begins at the tools.
        BadRequest: the structured answer cannot be had, tools apart.
    """
    if calls.instead is not None:
        try:
            of_schema(calls.instead)
        except GrammarError as error:
            param = "response_format.json_schema.schema" + written(error.path)
            raise BadRequest(error.message, code=error.code, param=param) from None
    for at in calls.offer.callable:  # here, because a source of several has no path to one
        with _at(at):
            of_schema(calls.schema(at))
    return _source(calls)


@contextmanager
def _at(place: int) -> Iterator[None]:
    """Say of which tool a schema is wrong."""
    try:
        yield
    except GrammarError as error:
        raise error.below(place, "function", "parameters") from None


def _read(schemas: Sequence[tuple[int, Schema]]) -> str:
    """No source: what a grammar cannot hold need not be held.

    Raises:
        GrammarError: no arguments follow a schema, or it is none; with a path as above.
    """
    for at, schema in schemas:
        try:
            with _at(at):
                of_schema(schema)
        except GrammarError as error:
            if error.code == INVALID:
                raise
    return ""


def _source(calls: Calls) -> str:
    """The source, its schemas known to be good."""
    form, repeated, apart = calls.form, calls.several, calls.form.apart or ""
    if calls.offer.required:
        return of_tags(calls.tags, repeated=repeated, separator=apart)
    if calls.instead is not None and form.begin:
        instead = (json_part(calls.instead, LAYOUT),)
        return of_tags(calls.tags, repeated=repeated, separator=apart, instead=instead)
    if calls.instead is not None:  # both begin alike, and only inside one schema may they
        return of_schema({"anyOf": [*calls.objects, calls.instead]})
    if form.begin:
        return of_tags(calls.tags, triggers=[form.begin], required=False, repeated=repeated)
    return of_tags(calls.tags, repeated=repeated, separator=apart, instead=(slashed(NO_CALL),))
