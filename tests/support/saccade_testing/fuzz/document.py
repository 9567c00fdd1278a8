"""The API's document as a generator of requests needs it: deeper where it leaves much open.

A random text is no model, no picture, and an entry without a method's own parameters is refused
before anything is done. So what other routes say about these is put in their places.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from saccade_server.detectors.registry import DETECTORS, describe
from saccade_testing.api.bodies import PICTURE, PROBED

PICTURES = (PROBED, PICTURE)
REFERENCE = "#/components/schemas/"
ANY_TOKEN = 2**31
Schema = dict[str, Any]


@dataclass(frozen=True)
class Digests:
    """Of files that are there."""

    artifacts: list[str]
    trace: str

    def within(self, path: str) -> list[str]:
        return self.artifacts if path.startswith("/v1/artifacts") else [self.trace]


def deepened(
    document: Schema, methods: Iterable[Schema], model: str, tokens: int, digests: Digests
) -> Schema:
    """A document whose valid requests mostly reach the engine.

    Args:
        document: of ``GET /openapi.json``.
        methods: of ``GET /v1/interventions/{method}``.
        model: the name of the served model.
        tokens: how many there are.
        digests: what requests may name, besides files that are not there.
    """
    whole = copy.deepcopy(document)
    schemas = whole["components"]["schemas"]
    entries = [_moved(f"Entry_{m['id']}", m["schema"], schemas) for m in methods]
    detectors = [_moved(f"Detector_{n}", describe(n)["schema"], schemas) for n in DETECTORS]
    schemas["ImageUrl"]["properties"]["url"] = {"enum": list(PICTURES)}
    for schema in schemas.values():
        fields = schema.get("properties", {})
        if "interventions" in fields and "intervention_profile" in fields:
            fields["interventions"] = _some(entries)
            fields["intervention_profile"] = {"type": "null"}
        if "detectors" in fields and "trace" in fields:
            fields["detectors"] = _some(detectors)
        if "model" in fields and ("messages" in fields or "prompt" in fields or "tokens" in fields):
            fields["model"] = {"enum": [model, None]}
    for schema in _all(schemas):
        if schema.get("exclusiveMaximum") == ANY_TOKEN and schema.get("minimum") == 0:
            schema["exclusiveMaximum"] = tokens
        if "artifact" in schema.get("properties", {}):
            _named(schema["properties"]["artifact"], [f"sha256:{d}" for d in digests.artifacts])
    for path, item in whole["paths"].items():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "digest":
                    parameter["schema"] = {"enum": [*digests.within(path), "0" * 64]}
    return whole


def _some(entries: list[Schema]) -> Schema:
    return {"anyOf": [{"type": "array", "items": {"anyOf": entries}}, {"type": "null"}]}


def _named(field: Schema, names: list[str]) -> None:
    """Have a field name one of ``names`` instead of anything of their form."""
    for each in field.get("anyOf", (field,)):
        if each.pop("pattern", None):
            each["enum"] = names


def _moved(name: str, schema: Schema, schemas: dict[str, Schema]) -> Schema:
    """A reference to a schema of its own, which now lies among the others."""
    moved = copy.deepcopy(schema)
    moved.pop("$schema", None)
    parts = moved.pop("$defs", {})
    for part, found in parts.items():
        schemas[f"{name}_{part}"] = found
    for each in (moved, *parts.values()):
        for inner in _all(each):
            if str(inner.get("$ref", "")).startswith("#/$defs/"):
                inner["$ref"] = REFERENCE + name + "_" + inner["$ref"].removeprefix("#/$defs/")
    schemas[name] = moved
    return {"$ref": REFERENCE + name}


def _all(value: Any) -> Iterator[Schema]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _all(item)
