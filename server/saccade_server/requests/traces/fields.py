"""The fields that kinds of trace share: rows, layers, heads, keys, what is averaged over."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from saccade_interventions.indices import Indices

MOST_RANGES = 64
INT64 = 2**63
NULL = {"type": "null"}
ABOUT = ("title", "description", "default")
"""What a JSON Schema says of a field, and not of its values."""


def _whole(value: Any) -> Any:
    # JSON has one kind of number, and some languages write 16 as 16.0.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _ordered(pair: list[int]) -> list[int]:
    if pair[0] >= pair[1]:
        message = "a range has its first number and then, larger, the first that is left out"
        raise PydanticCustomError("empty_range", message)
    return pair


def _apart(ranges: list[list[int]]) -> list[list[int]]:
    if any(before[1] > after[0] for before, after in pairwise(ranges)):
        raise PydanticCustomError("overlap", "ranges ascend and do not overlap")
    return ranges


def _distinct(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("duplicate", "an axis is named twice")
    return values


def _rows_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "name"
    return "range" if isinstance(value, dict | BaseModel) else None


def _keys_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "name"
    return "ranges" if isinstance(value, list) else None


Whole = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=INT64)]
Range = Annotated[list[Whole], Field(min_length=2, max_length=2), AfterValidator(_ordered)]
"""First and end, exclusive."""

Ranges = Annotated[list[Range], Field(min_length=1, max_length=MOST_RANGES), AfterValidator(_apart)]
"""Several, ascending."""


class Closed(BaseModel):
    """Strict types; unknown fields are refused, and null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: given for name, given in value.items() if given is not None}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        shown = handler(core)
        whole = handler.resolve_ref_schema(shown)
        needed = whole.get("required", ())
        for name, field in whole["properties"].items():
            if name not in needed and NULL not in field.get("anyOf", ()):
                about = {key: field.pop(key) for key in ABOUT if key in field}
                whole["properties"][name] = {"anyOf": [field, NULL], **about}
        return shown


class RowRange(Closed):
    """Some rows: of answer tokens, counted from 0, or of prompt positions."""

    answer: Range | None = None
    prompt: Range | None = None

    @model_validator(mode="after")
    def _one(self) -> RowRange:
        if (self.answer is None) == (self.prompt is None):
            raise PydanticCustomError("one_range", "name either answer or prompt")
        return self


Rows = Annotated[
    Annotated[Literal["answer", "prompt", "all"], Tag("name")] | Annotated[RowRange, Tag("range")],
    Discriminator(
        _rows_kind,
        custom_error_type="rows",
        custom_error_message='rows are "answer", "prompt", "all" or an object with a range',
    ),
    Field(
        description="Query rows. answer: those that the answer's tokens were drawn from, one for "
        "each token; prompt: all of the prompt's; all: both; or a range of either, its end "
        "exclusive."
    ),
]
Keys = Annotated[
    Annotated[Literal["prompt", "image", "question", "answer", "all"], Tag("name")]
    | Annotated[Ranges, Tag("ranges")],
    Discriminator(
        _keys_kind,
        custom_error_type="keys",
        custom_error_message='keys are "prompt", "image", "question", "answer", "all" or a list of '
        "ranges of positions",
    ),
    Field(
        description="Keys: of the prompt, of its images, of what is behind the last image, of the "
        "answer, of both; or ranges of positions, their ends exclusive."
    ),
]
Reduced = Annotated[
    list[Literal["layer", "head"]],
    AfterValidator(_distinct),
    Field(
        json_schema_extra={"uniqueItems": True}, description="Axes to average over; [] keeps both."
    ),
]
Layers = Annotated[
    Indices | None, Field(description="Decoder layers, counted from 0. Left out: all.")
]
Heads = Annotated[
    Indices | None, Field(description="Query heads, the same in each layer. Left out: all.")
]
Tau = Annotated[
    Annotated[float, Field(gt=0, le=1000)] | None,
    Field(description="Sink threshold. Left out: 20 sqrt(hidden_size / 4096), as in `var`."),
]
Direction = Annotated[list[float], Field(min_length=1, fail_fast=True)]
