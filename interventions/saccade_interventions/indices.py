"""Numbers of layers and heads in what is read: counted from 0, none of them twice."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError


def _unique(values: list[int]) -> list[int]:
    if len(set(values)) == len(values):
        return values
    seen: set[int] = set()
    for index, value in enumerate(values):
        if value in seen:
            raise PydanticCustomError(
                "duplicate", "{value} is named twice", {"value": value, "at": index}
            )
        seen.add(value)
    return values


Index = Annotated[int, Field(ge=0)]
Indices = Annotated[
    list[Index],
    Field(min_length=1, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_unique),
]
