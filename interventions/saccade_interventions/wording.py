"""What is wrong with a value, in this project's words instead of pydantic's.

One sentence for each of pydantic's error types, saying what is expected. Methods and the server's
own schemas share them, so a request is refused in one voice wherever it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

Facts = Mapping[str, Any]

QUOTE = "'"

SENTENCES: dict[str, str | Callable[[Facts], str]] = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this object",
    "none_required": "may only be null",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is a number that is too large",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be a text",
    "string_unicode": "must be valid Unicode text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dataclass_type": "must be an object",
    "mapping_type": "must be an object",
    "greater_than": lambda facts: f"must be more than {_number(facts['gt'])}",
    "greater_than_equal": lambda facts: f"must be at least {_number(facts['ge'])}",
    "less_than": lambda facts: f"must be less than {_number(facts['lt'])}",
    "less_than_equal": lambda facts: f"must be at most {_number(facts['le'])}",
    "multiple_of": lambda facts: f"must be a multiple of {_number(facts['multiple_of'])}",
    "string_too_short": lambda facts: _at_least(facts["min_length"], "character"),
    "string_too_long": lambda facts: _at_most(facts["max_length"], "character"),
    "too_short": lambda facts: _at_least(facts["min_length"], "entry"),
    "too_long": lambda facts: _at_most(facts["max_length"], "entry"),
    "string_pattern_mismatch": lambda facts: f"does not have the form {facts['pattern']}",
    "literal_error": lambda facts: f"must be {_quoted(facts['expected'])}",
    "enum": lambda facts: f"must be {_quoted(facts['expected'])}",
    "union_tag_invalid": lambda facts: (
        f"must have a {facts['discriminator'].strip(QUOTE)} among {_quoted(facts['expected_tags'])}"
    ),
    "union_tag_not_found": lambda facts: f"must name its {facts['discriminator'].strip(QUOTE)}",
}
"""Error type -> the sentence's end, or how it is made of the error's facts."""

FOREIGN = frozenset(get_args(ErrorType)) - {"value_error"}
"""Types whose text is pydantic's; that of any other is the schema's own."""


def about(path: str, error: ErrorDetails) -> str:
    """What is wrong with the value at ``path``."""
    worded = SENTENCES.get(error["type"])
    if worded is not None:
        what = worded if isinstance(worded, str) else worded(error.get("ctx", {}))
        return f"{path or 'the value'} {what}"
    if error["type"] in FOREIGN:
        return f"{path or 'the value'} is not valid here"
    own = error["msg"].removeprefix("Value error, ")
    return f"{path}: {own}" if path else own


def _quoted(names: str) -> str:
    return names.replace(QUOTE, '"')  # as JSON has them


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _at_least(length: int, what: str) -> str:
    return f"must have at least {_count(length, what)}"


def _at_most(length: int, what: str) -> str:
    return f"may have at most {_count(length, what)}"


def _count(length: int, what: str) -> str:
    many = {"entry": "entries"}.get(what, f"{what}s")
    return f"{length} {what if length == 1 else many}"
