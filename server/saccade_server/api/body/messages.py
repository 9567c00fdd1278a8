"""The messages of a conversation, as clients send and replay them.

Clients send an answer's own message back with all its null fields, and histories of tools, which
any model is shown; both are read. What has no effect is listed in
:mod:`~saccade_server.api.body.noeffect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from saccade_server.api.body.noeffect import describe
from saccade_server.models.conversation import strings

MAY_SAY_NOTHING = ("assistant", "tool")
"""Roles whose content may be null: an assistant that called a tool, a tool without a result."""
MOST_CALLS = 128
LONGEST_NAME = 256

Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]


class Strict(BaseModel):
    """Strict types; unknown fields are kept aside in ``model_extra``."""

    model_config = ConfigDict(strict=True, extra="allow")


class Closed(BaseModel):
    """Strict types; unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


def _kind(value: Any) -> str | None:
    # The member of a union is chosen before validation, so a client sees one error, not two.
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "list"
    return "object" if isinstance(value, dict) else None


TEXT_OR_LIST = Discriminator(
    _kind, custom_error_type="not_text_or_list", custom_error_message="a text or a list is expected"
)
TEXT_OR_OBJECT = Discriminator(
    _kind,
    custom_error_type="not_text_or_object",
    custom_error_message="an object, or the JSON text of one, is expected",
)


def _plain_url(value: Any) -> Any:
    """Some clients leave out the object around the URL."""
    return {"url": value} if isinstance(value, str) else value


def _none_if_empty(value: Any) -> Any:
    # Languages without null write every text of a message, the empty ones too.
    return None if value == "" else value


MaybeName = Annotated[
    Name | None,
    BeforeValidator(_none_if_empty),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": LONGEST_NAME}, {"type": "null"}]}),
]


class ImageUrl(Strict):
    """Where an image is: a data URL, or http(s) where the operator allows it."""

    url: str
    detail: Any = Field(None, description=describe("image_url.detail"))


class TextPart(Strict):
    """Text among images."""

    type: Literal["text"]
    text: str


class RefusalPart(Strict):
    """What an assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_plain_url)]


AnyPart = TextPart | ImagePart | RefusalPart
Part = Annotated[AnyPart, Field(discriminator="type")]


def _said(part: AnyPart) -> str:
    match part:
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
    return ""


class FunctionCall(Strict):
    """What an assistant called, and with which arguments: an object, or its JSON text."""

    name: Name
    arguments: (
        Annotated[
            Annotated[str, Tag("text")] | Annotated[dict[str, Any], Tag("object")],
            TEXT_OR_OBJECT,
        ]
        | None
    ) = None

    @property
    def characters(self) -> int:
        """How much it says, nearly: an object's punctuation is left out."""
        if isinstance(self.arguments, str):
            return len(self.name) + len(self.arguments)
        return len(self.name) + sum(map(len, strings(self.arguments or {})))


class ToolCall(Strict):
    """One call of a tool in an assistant's message."""

    id: MaybeName = None
    type: Annotated[
        Literal["function"] | None,
        BeforeValidator(_none_if_empty),
        WithJsonSchema({"enum": ["function", "", None]}),
    ] = None
    function: FunctionCall


class ChatMessage(Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[str, Tag("text")] | Annotated[list[Part], Field(fail_fast=True), Tag("list")],
            TEXT_OR_LIST,
        ]
        | None
    ) = Field(None, validate_default=True)
    name: MaybeName = Field(None, description="Given to the chat template.")
    refusal: str | None = Field(None, description="An assistant's: read as text of its message.")
    reasoning_content: str | None = Field(
        None, description="An assistant's: given to the chat template."
    )
    reasoning: str | None = Field(None, description="The newer name of reasoning_content.")
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=MOST_CALLS)] | None = (
        Field(None, description="An assistant's calls, read as a part of the conversation.")
    )
    tool_call_id: MaybeName = Field(None, description="A tool's: the call that it answers.")

    @field_validator("content")
    @classmethod
    def _says_something(cls, content: Any, info: ValidationInfo) -> Any:
        role = info.data.get("role")
        if role is None or role in MAY_SAY_NOTHING:
            return content
        if content is None:
            raise PydanticCustomError("missing", "content is required")
        if not content and isinstance(content, list):
            raise PydanticCustomError("no_parts", "a message has at least one part")
        return content

    @field_validator("tool_calls")
    @classmethod
    def _by_an_assistant(cls, calls: Any, info: ValidationInfo) -> Any:
        if calls and info.data.get("role") not in (None, "assistant"):
            raise PydanticCustomError("not_an_assistant", "only assistants call tools")
        return calls

    @property
    def thoughts(self) -> str | None:
        """An assistant's reasoning, whichever field has it."""
        given = self.reasoning if self.reasoning_content is None else self.reasoning_content
        return given if self.role == "assistant" else None

    @property
    def parts(self) -> Sequence[AnyPart]:
        """The content as a list."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content or []

    @property
    def characters(self) -> int:
        """How much it says, whichever field has it, calls included."""
        said = sum(len(_said(part)) for part in self.parts)
        called = sum(call.function.characters for call in self.tool_calls or ())
        return said + called + len(self.refusal or "") + len(self.thoughts or "")
