"""What requests say that answers must be."""

import json
from typing import Any

HI = [{"role": "user", "content": "Hi"}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}}
TEXT = json.dumps(SCHEMA)
TAGS = {
    "type": "structural_tag",
    "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
    "triggers": ["<f"],
}
CONTENT = {"type": "json_schema", "json_schema": SCHEMA}
NEWER = {
    "type": "structural_tag",
    "format": {
        "type": "triggered_tags",
        "triggers": ["<f"],
        "tags": [
            {"begin": "<f>", "content": CONTENT, "end": "</f>"},
        ],
        "at_least_one": True,
    },
}


def schema_format(schema: object, **more: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, **more}}


def outputs(**fields: object) -> dict[str, Any]:
    return {"structured_outputs": fields}
