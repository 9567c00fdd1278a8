"""A field that some answers leave out is not null there; :data:`Absent` says so in the schema."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

Kind = TypeVar("Kind")


def no_default(schema: dict[str, Any]) -> None:
    """Take out the default: a field that is left out has none."""
    schema.pop("default", None)


Absent = Annotated[Kind | SkipJsonSchema[None], Field(None, json_schema_extra=no_default)]
"""A field that is there or is not, and never null."""
