"""What an answer must be: a type, a JSON Schema, or OpenAI's object; and the objects it becomes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from pydantic import PrivateAttr

from saccade_client import schemas
from saccade_client.accumulate import StreamKind, chat_content
from saccade_client.answers import ChatChunk, ChatCompletion
from saccade_client.errors import InvalidInput
from saccade_client.interventions import plain
from saccade_client.parsing import carried_by

T = TypeVar("T")

ResponseFormat: TypeAlias = "type[Any] | Mapping[str, Any]"

SCHEMA_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
NOT_A_NAME = re.compile(r"[^A-Za-z0-9_-]+", re.ASCII)
LONGEST_NAME = 64


def entry(given: Any) -> dict[str, Any]:
    """Return `response_format` as it goes on the wire. Raises InvalidInput."""
    if not isinstance(given, Mapping):
        return schema_entry(schemas.name_of(given), schemas.schema_of(given))
    copy: dict[str, Any] = plain(given, "response_format")
    kind = copy.get("type", SCHEMA_TYPES)
    is_schema = isinstance(kind, list | tuple) or kind in SCHEMA_TYPES
    return schema_entry(str(copy.get("title", "answer")), copy) if is_schema else copy


def schema_entry(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    name = NOT_A_NAME.sub("_", name).strip("_")[:LONGEST_NAME] or "answer"
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


class Parsed(ChatCompletion, Generic[T]):
    """An answer with the objects that its choices are."""

    _objects: list[Any] = PrivateAttr(default_factory=list)

    @property
    def parsed(self) -> T:
        """What the first choice is."""
        return self.all_parsed[0]

    @property
    def all_parsed(self) -> list[T]:
        """What each of the `n` choices is."""
        return self._objects


@dataclass(frozen=True)
class Parsing(Generic[T]):
    """A type that answers are read as."""

    kind: type[T]

    def __post_init__(self) -> None:
        if isinstance(self.kind, Mapping):
            hint = "send a schema by chat(response_format=…), and read its answer by parse(dict)"
            raise InvalidInput(f"answers are parsed as a type: {hint}")

    def fit(self, answer: Parsed[T]) -> Parsed[T]:
        """Read all choices. Raises AnswerTruncated, AnswerRefused and AnswerInvalid."""
        if not answer.choices:
            answer.parse(self.kind)
        with carried_by(answer):
            answer._objects = [choice.parse(self.kind) for choice in answer.choices]
        return answer

    @property
    def stream_kind(self) -> StreamKind[ChatChunk, Parsed[T]]:
        """How a stream is parsed whose end is an object."""
        return StreamKind(ChatChunk.model_validate, self._final, chat_content)

    def _final(self, sum_of_chunks: Any) -> Parsed[T]:
        return self.fit(Parsed.model_validate(sum_of_chunks))
