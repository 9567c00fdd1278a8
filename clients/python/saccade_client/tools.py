"""Name tools: as OpenAI's objects, as types, or as functions.

    {"type": "function", "function": {"name": "look", "parameters": {…}}}
    class Look(BaseModel): …                    # also a dataclass or a TypedDict
    def look(place: str, zoom: float = 1.0) -> str: …

All three become the same JSON entry. A type's or a function's docstring is the description that
the model reads; of a function every parameter is annotated, with `Annotated[str,
pydantic.Field(description="…")]` where one is to be described.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from saccade_client import schemas
from saccade_client.errors import InvalidInput
from saccade_client.interventions import plain

ToolLike: TypeAlias = "Mapping[str, Any] | type[Any] | Callable[..., Any]"
Tools: TypeAlias = "Sequence[ToolLike]"
ToolChoice: TypeAlias = "str | ToolLike"

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
CHOICES = ("auto", "none", "required")


def tool(
    source: ToolLike,
    *,
    name: str | None = None,
    description: str | None = None,
    strict: bool | None = None,
) -> dict[str, Any]:
    """Return the entry of a tool, with a name, a description or `strict` of your own.

    `strict`: its arguments are held to its schema also where the model is free to call it or not.
    Raises InvalidInput for what a JSON Schema cannot describe.
    """
    given = {"name": name, "description": description, "strict": strict}
    changed = {field: value for field, value in given.items() if value is not None}
    made = entry(source, "the tool", name)
    function = made.get("function")
    if not isinstance(function, dict):
        raise InvalidInput("the tool is no function: its entry has no 'function'")
    return {**made, "function": {**function, **changed}}


def entries(tools: Tools) -> list[dict[str, Any]]:
    """Return the wire list of tools, in order. Raises InvalidInput."""
    if isinstance(tools, Mapping | str) or not isinstance(tools, Sequence):
        raise InvalidInput(f"tools are a list, not {type(tools).__name__}")
    return [entry(item, f"tools[{index}]") for index, item in enumerate(tools)]


def entry(item: ToolLike, path: str, named: str | None = None) -> dict[str, Any]:
    if isinstance(item, Mapping):
        copy: dict[str, Any] = plain(item, path)
        return copy
    if not callable(item):
        wanted = "an object with type and function, a type or a function"
        raise InvalidInput(f"{path} is {type(item).__name__}; give {wanted}")
    name = named or schemas.name_of(item)
    if not NAME.fullmatch(name):
        raise InvalidInput(f"{path} has no name to be called by: give it one with tool(…, name=…)")
    kind = item if isinstance(item, type) else schemas.parameters_of(item)
    parameters = schemas.schema_of(kind)
    if parameters.get("type") != "object":
        raise InvalidInput(f"{path}: the arguments of a tool are an object, and {name} is none")
    parameters.pop("title", None)
    said = parameters.pop("description", None)
    description = said if isinstance(item, type) else inspect.getdoc(item)
    about = {"description": description} if description else {}
    return {"type": "function", "function": {"name": name, **about, "parameters": parameters}}


def choice(given: ToolChoice) -> Any:
    """Return `tool_choice` as it goes on the wire: a word, or the function to be called."""
    if isinstance(given, Mapping):
        return plain(given, "tool_choice")
    if isinstance(given, str) and given in CHOICES:
        return given
    name = given if isinstance(given, str) else getattr(given, "__name__", None)
    if not isinstance(name, str):
        words = ", ".join(map(repr, CHOICES))
        raise InvalidInput(f"tool_choice is {words} or one of the tools, not {given!r:.80}")
    return {"type": "function", "function": {"name": name}}


def check_choice(body: Mapping[str, Any]) -> None:
    """Refuse a choice among other tools than those of the request. Raises InvalidInput."""
    chosen, tools = called(body.get("tool_choice")), body.get("tools", ())
    names = [called(item) for item in tools]
    if chosen is not None and tools and chosen not in names:
        words = ", ".join(map(repr, [*CHOICES, *names]))
        raise InvalidInput(f"tool_choice is one of {words}, not {chosen!r}")


def called(entry: Any) -> str | None:
    function = entry.get("function") if isinstance(entry, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None
