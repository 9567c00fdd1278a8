"""The fields that ask for more or less reasoning, and say what becomes of its text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from saccade_server.api.body.messages import Closed


class ThinkingSwitch(Closed):
    """Whether to think, as other servers' clients say it."""

    type: Literal["enabled", "disabled"]


SWITCH = {
    "type": "object",
    "properties": {"type": {"enum": ["enabled", "disabled"]}},
    "required": ["type"],
    "additionalProperties": False,
}


def _switched(value: Any) -> Any:
    return {"type": "enabled" if value else "disabled"} if isinstance(value, bool) else value


class HowMuch(BaseModel):
    """How much to think, which a chat template has to be able to say."""

    reasoning_effort: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None,
        description="The chat template's variable of this name; `none` turns its switch off where "
        "it has one. Refused where the template has neither.",
    )
    thinking: Annotated[
        ThinkingSwitch | None,
        BeforeValidator(_switched),
        WithJsonSchema({"anyOf": [SWITCH, {"type": "boolean"}, {"type": "null"}]}),
    ] = Field(
        None,
        description="Turns the chat template's switch, `enable_thinking` or `thinking`, on or off. "
        "Refused where the template has none.",
    )


class Shown(BaseModel):
    """What becomes of the text of reasoning."""

    include_reasoning: bool | None = Field(
        None, description="false leaves `reasoning_content` out; its tokens count all the same."
    )
    separate_reasoning: bool | None = Field(
        None,
        description="false leaves the reasoning in the answer's content, with the model's markers.",
    )
