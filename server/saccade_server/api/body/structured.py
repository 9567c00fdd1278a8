"""The fields that say what an answer must be: OpenAI's, vLLM's, and the older names of vLLM's.

Objects of these are closed: what nobody reads in them would be a promise that is not kept.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, Tag

from saccade_server.api.body.messages import TEXT_OR_OBJECT, Closed
from saccade_server.api.body.noeffect import describe

LONGEST_TEXT = 256 * 1024
"""Characters of a grammar, a regular expression, or a schema that is given as text."""
MOST_CHOICES = 4096
MOST_TAGS = 128
LONGEST_TAG = 1024

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Choices = Annotated[list[Text], Field(fail_fast=True, max_length=MOST_CHOICES)]
SchemaObject = Annotated[dict[str, Any], Field(description="A JSON Schema.")]
Schema = Annotated[
    Annotated[Text, Tag("text")] | Annotated[SchemaObject, Tag("object")], TEXT_OR_OBJECT
]
"""A JSON Schema, or its JSON text."""
TagText = Annotated[str, Field(max_length=LONGEST_TAG)]
Trigger = Annotated[str, Field(min_length=1, max_length=LONGEST_TAG)]
Triggers = Annotated[list[Trigger], Field(fail_fast=True, min_length=1, max_length=MOST_TAGS)]


class JsonSchemaFormat(Closed):
    """A schema with what OpenAI has around it."""

    name: str | None = Field(None, max_length=256, description="What its author calls it.")
    description: Any = Field(None, description=describe("json_schema.description"))
    schema_: SchemaObject = Field(alias="schema")
    strict: bool | None = Field(
        None, description="The schema holds either way: also where this is false or left out."
    )


class TaggedStructure(Closed):
    """Text between two tags that follows a schema."""

    begin: Trigger
    schema_: SchemaObject | None = Field(None, alias="schema", description="null: any JSON.")
    end: TagText


class TagContent(Closed):
    """What is between two tags."""

    type: Literal["json_schema"]
    json_schema: SchemaObject


class TagFormat(Closed):
    """Two tags and what is between them."""

    type: Literal["tag"] | None = None
    begin: Trigger
    content: TagContent
    end: TagText


class TriggeredTags(Closed):
    """Free text, in which a trigger begins one of the tags."""

    type: Literal["triggered_tags"]
    triggers: Triggers
    tags: Annotated[list[TagFormat], Field(fail_fast=True, min_length=1, max_length=MOST_TAGS)]
    at_least_one: bool | None = None
    stop_after_first: bool | None = None


class TextResponse(Closed):
    """Any text, as without it."""

    type: Literal["text"]


class ObjectResponse(Closed):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaResponse(Closed):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


class StructuralTag(Closed):
    """Free text with tags, whose insides follow schemas; in one of vLLM's two forms."""

    type: Literal["structural_tag"]
    structures: (
        Annotated[list[TaggedStructure], Field(fail_fast=True, min_length=1, max_length=MOST_TAGS)]
        | None
    ) = Field(None, description="vLLM's older form, with triggers beside.")
    triggers: Triggers | None = None
    format: TriggeredTags | None = Field(None, description="vLLM's newer form, with all in it.")


AnyResponse = TextResponse | ObjectResponse | SchemaResponse | StructuralTag


class StructuredOutputs(Closed):
    """vLLM's: one of the first six, and how JSON is written."""

    json_: Schema | None = Field(None, alias="json", description="JSON that follows a schema.")
    regex: Text | None = Field(None, description="What a regular expression matches, all of it.")
    choice: Choices | None = Field(None, min_length=1, description="One of these texts.")
    grammar: Text | None = Field(None, description="What a grammar derives, in Lark or GBNF.")
    json_object: bool | None = Field(None, description="Any JSON object.")
    structural_tag: Text | None = Field(
        None, description="The JSON text of an object as response_format has it."
    )
    whitespace_pattern: Text | None = Field(
        None, description="What may be between the parts of JSON: a regular expression."
    )
    disable_any_whitespace: bool | None = Field(None, description="JSON is written without spaces.")
    disable_additional_properties: bool | None = Field(
        None, description="Objects of a schema that does not say so have no other properties."
    )
    disable_fallback: Any = Field(None, description=describe("structured_outputs.disable_fallback"))


_OLDER = "The older name of structured_outputs.{}; empty: not given."


class Structured(BaseModel):
    """The fields that say what an answer must be; at most one of them may."""

    response_format: Annotated[AnyResponse, Field(discriminator="type")] | None = Field(
        None, description="What the answer must be; see docs/structured.md."
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="The same in vLLM's form, which has more."
    )
    guided_json: Schema | None = Field(None, description=_OLDER.format("json"))
    guided_regex: Text | None = Field(None, description=_OLDER.format("regex"))
    guided_choice: Choices | None = Field(None, description=_OLDER.format("choice"))
    guided_grammar: Text | None = Field(None, description=_OLDER.format("grammar"))
    guided_json_object: bool | None = Field(None, description=_OLDER.format("json_object"))
    guided_whitespace_pattern: Text | None = Field(
        None, description=_OLDER.format("whitespace_pattern")
    )
    guided_decoding_backend: Any = Field(None, description=describe("guided_decoding_backend"))
    structural_tag: Text | None = Field(None, description=_OLDER.format("structural_tag"))
