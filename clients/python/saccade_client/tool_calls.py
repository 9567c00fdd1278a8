"""Calls of tools in an answer: what was called, with which arguments, and what goes back."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator

from saccade_client import schemas
from saccade_client.errors import ArgumentsInvalid, InvalidInput
from saccade_client.interventions import plain
from saccade_client.wire import Wire

T = TypeVar("T")


class FunctionCall(Wire):
    """The name of a function and its arguments, as the JSON text that the model wrote."""

    name: str
    arguments: Annotated[str, BeforeValidator(lambda value: "" if value is None else value)] = ""


class ToolCall(Wire):
    """One call. Its arguments are read when they are asked for: a model may write anything."""

    id: str = ""
    type: str = "function"
    function: FunctionCall

    @property
    def name(self) -> str:
        return self.function.name

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as they stand. Raises ArgumentsInvalid if they are no JSON object."""
        try:
            value = schemas.loaded(self._text)
        except ValueError as error:
            raise self._invalid(f"are no JSON: {error}") from error
        if not isinstance(value, dict):
            raise self._invalid("are no JSON object")
        return value

    def parse(self, kind: builtins.type[T]) -> T:
        """Return the arguments as a model, a dataclass or a TypedDict. Raises ArgumentsInvalid."""
        try:
            return schemas.read(kind, self._text)
        except InvalidInput:
            raise
        except ValueError as error:
            raise self._invalid(f"do not fit: {error}") from error

    def arguments_for(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Return the arguments as a function's annotations have them: `f(**call.arguments_for(f))`.

        Raises ArgumentsInvalid.
        """
        try:
            return schemas.arguments_of(function, self._text)
        except InvalidInput:
            raise
        except ValueError as error:
            raise self._invalid(f"do not fit: {error}") from error

    def reply(self, result: Any) -> dict[str, Any]:
        """Return the message that gives the model the result: a text, or what JSON can carry.

        Raises InvalidInput.
        """
        return {"role": "tool", "tool_call_id": self.id, "content": result_text(result, self.name)}

    @property
    def _text(self) -> str:
        # An empty text is how some servers write no arguments.
        return self.function.arguments.strip() or "{}"

    def _invalid(self, reason: str) -> ArgumentsInvalid:
        message = f"the arguments of {self.name} {reason}"
        return ArgumentsInvalid(message, text=self.function.arguments, call=self)


class FunctionDelta(Wire):
    """What a chunk adds to a call's name and to the text of its arguments."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Wire):
    """What a chunk adds to call `index`: the first has its id and name."""

    index: int = 0
    id: str | None = None
    type: str | None = None
    function: FunctionDelta = FunctionDelta()


class ToolCalls:
    """The calls of one answer under construction."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}

    def add(self, delta: ToolCallDelta) -> None:
        call = self._calls.setdefault(delta.index, {"id": "", "name": "", "arguments": []})
        call["id"] = delta.id or call["id"]
        call["name"] = delta.function.name or call["name"]
        call["arguments"].append(delta.function.arguments or "")

    def entries(self) -> list[dict[str, Any]]:
        """The calls in order, as a whole answer has them."""
        calls = [self._calls[index] for index in sorted(self._calls)]
        return [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": "".join(call["arguments"])},
            }
            for call in calls
        ]


def result_text(result: Any, name: str) -> str:
    if isinstance(result, str):
        return result
    try:
        if isinstance(result, BaseModel):
            return result.model_dump_json()
        value = plain(result, f"the result of {name}")
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except InvalidInput:
        raise
    except ValueError as error:
        raise InvalidInput(f"the result of {name} cannot be written as JSON: {error}") from error
