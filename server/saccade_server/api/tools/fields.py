"""Tools as clients offer them, and which of them the model may or must call: OpenAI's fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from saccade_server.api.body.messages import Name, Strict

MOST_TOOLS = 128
TOOL_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
LONGEST_DESCRIPTION = 64 * 1024


class FunctionTool(Strict):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: Annotated[str, Field(max_length=LONGEST_DESCRIPTION)] | None = Field(
        None, description="What it does: given to the model."
    )
    parameters: dict[str, Any] | None = Field(
        None,
        description="A JSON schema of its arguments, an object. Left out: it takes none.",
    )
    strict: bool | None = Field(
        None, description="Have the arguments follow the schema, by a grammar, under `auto` too."
    )


class OfferedTool(Strict):
    """One tool."""

    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Strict):
    """The name of a function among the tools."""

    name: Name


class NamedTool(Strict):
    """The tool that must be called, or one of those that may be."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Strict):
    """Some of the tools, of which one may or must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(fail_fast=True, min_length=1, max_length=MOST_TOOLS)]


class AllowedChoice(Strict):
    """The tools stay in the prompt, all of them; only some may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "mode"
    if isinstance(value, NamedTool | AllowedChoice):
        return value.type
    return str(value.get("type")) if isinstance(value, dict) else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedTool, Tag("function")]
    | Annotated[AllowedChoice, Tag("allowed_tools")],
    Discriminator(
        _choice_kind,
        custom_error_type="no_tool_choice",
        custom_error_message='"none", "auto", "required", or an object of type "function" or '
        '"allowed_tools" is expected',
    ),
]
Tools = Annotated[list[OfferedTool], Field(fail_fast=True, max_length=MOST_TOOLS)]
