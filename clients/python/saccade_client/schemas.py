"""JSON Schemas of Python types, and values of these types read from what a model wrote.

Any type that pydantic knows is described: its models, dataclasses, TypedDicts, enumerations, lists
of these. What cannot be described whole is refused before anything is sent.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import (
    PydanticInvalidForJsonSchema,
    PydanticUndefinedAnnotation,
    PydanticUserError,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind

from saccade_client.errors import InvalidInput

T = TypeVar("T")

MOST_PROBLEMS = 5
"""How many of a value's mistakes an error's message lists."""
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# What pydantic raises for types that it cannot describe; names that annotations quote are looked
# up with Python's own errors.
NOT_A_TYPE = (PydanticUserError, PydanticUndefinedAnnotation)
UNDESCRIBED = (*NOT_A_TYPE, NameError, TypeError, ValueError, RecursionError)


class Schema(GenerateJsonSchema):
    """Describes objects as closed: a property that a type lacks would be thrown away on reading.

    Types that take further properties say so themselves. Titles that only repeat a name are left
    out: a model has to read a tool's schema.
    """

    def model_schema(self, schema: Any) -> dict[str, Any]:
        return closed(super().model_schema(schema))

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        return closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
        return closed(super().typed_dict_schema(schema))

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """A default may stay unsaid, but a schema that leaves out a choice would not be honest."""
        if kind == "skipped-choice":
            raise PydanticInvalidForJsonSchema(detail)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type. Raises InvalidInput where there is none."""
    try:
        return without_a_top_reference(adapter(kind).json_schema(schema_generator=Schema))
    except UNDESCRIBED as error:
        raise undescribed(kind, error) from error


def without_a_top_reference(schema: dict[str, Any]) -> dict[str, Any]:
    """A type that holds itself is defined aside; its own keywords belong at the top as well."""
    # Older versions of pydantic put the reference into an allOf of its own.
    held = schema.get("allOf", [schema])[0]
    name = str(held.get("$ref", "")).removeprefix("#/$defs/")
    definitions = schema.get("$defs", {})
    return {**definitions[name], "$defs": definitions} if name in definitions else schema


def read(kind: type[T], text: str) -> T:
    """Return what JSON text says, as a value of a type. Raises ValueError that lists mistakes, and
    InvalidInput for what is no type.
    """
    try:
        return cast("T", adapter(kind).validate_json(text))
    except ValidationError as error:
        raise ValueError(problems(error)) from error
    except NOT_A_TYPE as error:
        raise undescribed(kind, error) from error


def problems(error: ValidationError) -> str:
    """Say what is wrong where, without the values."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    places = [".".join(map(str, item["loc"])) for item in found]
    lines = [
        f"{place}: {item['msg']}" if place else item["msg"]
        for place, item in zip(places, found, strict=True)
    ]
    more = len(lines) - MOST_PROBLEMS
    return "; ".join(lines[:MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return what describes and reads a type. Raises InvalidInput."""
    try:
        hash(kind)
    except TypeError:
        return made(kind)
    return kept(kind)


def made(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind)
    except UNDESCRIBED as error:
        raise undescribed(kind, error) from error


kept = lru_cache(maxsize=64)(made)


def undescribed(kind: Any, error: Exception) -> InvalidInput:
    if isinstance(error, InvalidInput):
        return error
    reason = str(error).partition("\n")[0]
    return InvalidInput(f"{name_of(kind)} cannot be described by a JSON Schema: {reason}")


def name_of(kind: Any) -> str:
    return str(getattr(kind, "__name__", None) or repr(kind))


def parameters_of(function: Callable[..., Any]) -> type[Any]:
    """Return a type whose fields are the parameters of a function. Raises InvalidInput."""
    try:
        return kept_parameters(function)
    except TypeError as error:  # it has no hash
        raise undescribed(function, error) from error


@lru_cache(maxsize=64)
def kept_parameters(function: Callable[..., Any]) -> type[Any]:
    name = name_of(function)
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function, include_extras=True)
    except UNDESCRIBED as error:
        raise undescribed(function, error) from error
    fields: list[Any] = []
    for parameter in signature.parameters.values():
        if parameter.kind not in NAMED:
            raise InvalidInput(f"{name}: arguments of a tool have names, and {parameter} none")
        if parameter.name not in hints:
            raise InvalidInput(f"{name}: the parameter {parameter.name!r} has no type annotation")
        fields.append((parameter.name, hints[parameter.name], field_of(parameter)))
    namespace = {"__pydantic_config__": ConfigDict(extra="forbid")}
    return dataclasses.make_dataclass(name, fields, kw_only=True, namespace=namespace)


def field_of(parameter: inspect.Parameter) -> Any:
    if parameter.default is parameter.empty:
        return dataclasses.field()
    default = parameter.default
    if type(default).__hash__ is None:
        # A dataclass takes such a value for a mistake.
        return dataclasses.field(default_factory=lambda: default)
    return dataclasses.field(default=default)


def arguments_of(function: Callable[..., Any], text: str) -> dict[str, Any]:
    """Return the keyword arguments that JSON text has for a function. Raises ValueError."""
    found = read(parameters_of(function), text)
    return {item.name: getattr(found, item.name) for item in dataclasses.fields(found)}


def loaded(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError, for NaN and what is too deep as well."""
    try:
        return json.loads(text, parse_constant=no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
