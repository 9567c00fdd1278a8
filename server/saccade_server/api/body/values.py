"""The single values of requests: numbers, tokens and stop texts, with their ranges."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

MOST_STOPS = 64
LONGEST_STOP = 1024
LONGEST_STOPS = 4096
"""Characters of all stop strings together: each of them is looked for in every piece of text."""
MOST_BIASES = 1024
MOST_ALTERNATIVES = 20
INT64 = 2**63
TOKEN_ID = "[0-9]{1,10}"


def _whole(value: Any) -> Any:
    # JSON has one kind of number, and some languages write 16 as 16.0.
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]


def token_id(text: str) -> str:
    if not re.fullmatch(TOKEN_ID, text):
        raise PydanticCustomError("token_id", 'token ids are whole numbers in quotes, as in "42"')
    return text


def false_is_none(value: Any) -> Any:
    return None if value is False else value


def not_too_long(stops: list[str]) -> list[str]:
    if sum(map(len, stops)) > LONGEST_STOPS:
        message = "may have {most} characters, all of them together"
        raise PydanticCustomError("stops_too_long", message, {"most": LONGEST_STOPS})
    return stops


Alternatives = Annotated[
    Annotated[Whole, Field(ge=0, le=MOST_ALTERNATIVES)] | None,
    BeforeValidator(false_is_none),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": MOST_ALTERNATIVES},
                {"const": False},
                {"type": "null"},
            ]
        }
    ),
]
"""How many rivals of a token; clients that know the chat's logprobs send false for none."""
TokenId = Annotated[
    str, AfterValidator(token_id), WithJsonSchema({"type": "string", "pattern": f"^{TOKEN_ID}$"})
]
"""A token as a key of an object."""
Stops = Annotated[
    list[Stop], Field(fail_fast=True, max_length=MOST_STOPS), AfterValidator(not_too_long)
]
