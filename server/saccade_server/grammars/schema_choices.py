"""Alternatives of which one may hold, told apart by a property with constants of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def telling(alternatives: Sequence[Any], named: str | None) -> str | None:
    """The property whose constants differ between all of these schemas, if there is one.

    ``named``: the one that the document says it is, which is asked first. Where it is required, at
    most one of the schemas holds.
    """
    constants = [_constants(schema) for schema in alternatives]
    if not constants or any(found is None for found in constants):
        return None
    known = [found for found in constants if found is not None]
    shared = [name for name in known[0] if all(name in found for found in known)]
    shared.sort(key=lambda name: name != named)
    for name in shared:
        sets = [found[name] for found in known]
        if len(frozenset[str]().union(*sets)) == sum(map(len, sets)):
            return name
    return None


def _constants(schema: Any) -> dict[str, frozenset[str]] | None:
    """The texts that properties of an object may be, where they are listed; None: no object."""
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        return None
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return None
    found = {name: _texts(value) for name, value in properties.items()}
    return {name: texts for name, texts in found.items() if texts}


def _texts(schema: Any) -> frozenset[str]:
    if not isinstance(schema, Mapping):
        return frozenset()
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return frozenset()
    return frozenset(values)
