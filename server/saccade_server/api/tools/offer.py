"""What a request offers the model to call: its tools, checked, and how they may be called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from saccade_interventions import suggest
from saccade_interventions.errors import brief
from saccade_server.api.errors import BadRequest
from saccade_server.api.tools.fields import (
    AllowedChoice,
    FunctionTool,
    NamedTool,
    OfferedTool,
    ToolChoice,
)
from saccade_server.models.prompt import PromptProcessor

PARAMETERS = ("args", "arguments", "input_schema", "inputSchema", "parameter", "params", "schema")
"""What others call the schema of a function's arguments."""
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Offer:
    """Tools, all of which are in the prompt; ``callable`` are the places of those to be called.

    ``required``: one must be. ``named``: which it is has been said, and it is called once.
    """

    functions: tuple[FunctionTool, ...]
    callable: tuple[int, ...]
    required: bool = False
    named: bool = False

    @property
    def limited(self) -> bool:
        """Some of the tools may not be called."""
        return len(self.callable) < len(self.functions)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the tools that may be called."""
        return frozenset(self.functions[at].name for at in self.callable)

    @cached_property
    def for_template(self) -> list[dict[str, Any]]:
        """The tools in the form of OpenAI's API, which templates know; nothing is left out."""
        return [
            {
                "type": "function",
                "function": {
                    "name": function.name,
                    "description": function.description or "",
                    "parameters": function.parameters or NO_PARAMETERS,
                },
            }
            for function in self.functions
        ]


def schema_of(function: FunctionTool) -> Mapping[str, Any]:
    """The JSON schema of a function's arguments: an object's, whether it says so or not."""
    if not function.parameters:
        return NO_PARAMETERS | {"additionalProperties": False}
    return {"type": "object"} | function.parameters


def offer_of(
    prompts: PromptProcessor,
    tools: Sequence[OfferedTool] | None,
    choice: ToolChoice | None,
) -> Offer | None:
    """What is offered; None if there is nothing that may be called.

    Raises:
        BadRequest: tools with the same name, a choice that does not fit the tools, or a model that
            calls none.
    """
    _check_tools(tools or ())
    if not tools:
        if choice not in (None, "none", "auto"):
            raise BadRequest("tool_choice needs tools.", param="tool_choice")
        return None
    functions = tuple(tool.function for tool in tools)
    chosen = _chosen(functions, choice)
    if choice == "none":
        return None
    if prompts.tools_refused is not None:
        message = f"The served model calls no tools: {prompts.tools_refused}."
        raise BadRequest(message, code="unsupported_tools", param="tools")
    named = isinstance(choice, NamedTool)
    required = named or choice == "required"
    if isinstance(choice, AllowedChoice):
        required = choice.allowed_tools.mode == "required"
    return Offer(functions, chosen, required, named)


def _check_tools(tools: Sequence[OfferedTool]) -> None:
    seen: dict[str, int] = {}
    for at, tool in enumerate(tools):
        name, parameters = tool.function.name, tool.function.parameters
        first = seen.setdefault(name, at)
        if first != at:
            message = f"tools[{first}] has the name {brief(name)} already."
            raise BadRequest(message, param=f"tools[{at}].function.name")
        _check_place(tool, f"tools[{at}]")
        kind = (parameters or {}).get("type", "object")
        if kind != "object":
            message = 'Arguments are an object: a schema of them has the type "object", or none.'
            raise BadRequest(message, param=f"tools[{at}].function.parameters.type")


def _check_place(tool: OfferedTool, path: str) -> None:
    """Refuse what belongs elsewhere: beside a function, or under another name, it would be lost."""
    function = f"{path}.function"
    beside = {name: f"{function}.{name}" for name in FunctionTool.model_fields}
    within = dict.fromkeys(PARAMETERS, f"{function}.parameters")
    for given, where, meant in (
        (tool.model_extra, path, beside),
        (tool.function.model_extra, function, within),
    ):
        for name, value in (given or {}).items():
            if name in meant and value is not None:
                message = f"This is not read here; give {meant[name]}."
                raise BadRequest(message, code="unknown_field", param=f"{where}.{name}")


def _chosen(functions: Sequence[FunctionTool], choice: ToolChoice | None) -> tuple[int, ...]:
    """Places of the tools that a choice names, or of all."""
    places = {function.name: at for at, function in enumerate(functions)}
    named: list[tuple[str, str]] = []
    if isinstance(choice, NamedTool):
        named = [("tool_choice.function.name", choice.function.name)]
    elif isinstance(choice, AllowedChoice):
        path = "tool_choice.allowed_tools.tools"
        allowed = choice.allowed_tools.tools
        named = [
            (f"{path}[{at}].function.name", tool.function.name) for at, tool in enumerate(allowed)
        ]
    else:
        return tuple(places.values())
    for path, name in named:
        if name not in places:
            has = f"tools has {', '.join(list(places)[:8])}."
            hint = suggest.hint(name, places, has)
            raise BadRequest(f"There is no tool {brief(name)}; {hint}", param=path)
    return tuple(sorted({places[name] for _, name in named}))
