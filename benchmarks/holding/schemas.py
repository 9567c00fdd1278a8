"""What answers must be: schemas as applications send them, from two fields to a hundred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saccade_server.grammars.expressions import of_choices, of_regex
from saccade_server.grammars.json_schema import of_object, of_schema

TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}


def closed(**properties: Any) -> dict[str, Any]:
    """An object with all of these and nothing else, as strict answers are."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


PERSON = closed(name=TEXT, age=NUMBER)
ITEM = closed(
    name=TEXT,
    count={"type": "integer", "minimum": 0, "maximum": 10000},
    price={"type": "number"},
    kind={"enum": ["goods", "service", "shipping", "discount"]},
    paid=FLAG,
)
INVOICE = closed(
    number={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{6}$"},
    issued={"type": "string", "format": "date"},
    seller=closed(name=TEXT, street=TEXT, city=TEXT, zip=TEXT, country=TEXT),
    buyer=closed(name=TEXT, street=TEXT, city=TEXT, zip=TEXT, country=TEXT),
    items={"type": "array", "items": ITEM, "minItems": 1, "maxItems": 50},
    note={"anyOf": [TEXT, {"type": "null"}]},
)
TREE = {
    "$defs": {
        "node": closed(label=TEXT, children={"type": "array", "items": {"$ref": "#/$defs/node"}})
    },
    "$ref": "#/$defs/node",
}
WIDE = closed(**{f"field_{number}": (TEXT, NUMBER, FLAG)[number % 3] for number in range(100)})
ITEMS = {"type": "array", "items": ITEM}

SOURCES: dict[str, Callable[[], str]] = {
    "a choice of three": lambda: of_choices(["yes", "no", "unknown"]),
    "a date": lambda: of_regex("[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"),
    "any object": of_object,
    "a person": lambda: of_schema(PERSON),
    "an invoice": lambda: of_schema(INVOICE),
    "a tree": lambda: of_schema(TREE),
    "a hundred fields": lambda: of_schema(WIDE),
}
