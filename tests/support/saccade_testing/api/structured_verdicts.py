"""What the values of fields do that say what an answer must be, by the class that declares them."""

import json
from typing import Any

from saccade_testing.api.verdicts import Verdict, switch

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
OTHER = {"type": "array"}
TAG = {"begin": "<f>", "content": {"type": "json_schema", "json_schema": SCHEMA}, "end": "</f>"}
OLDER_TAG = {"begin": "<f>", "schema": SCHEMA, "end": "</f>"}
OLDER_TAGS = {"type": "structural_tag", "structures": [OLDER_TAG], "triggers": ["<"]}
FORMAT = {"type": "triggered_tags", "triggers": ["<"], "tags": [TAG]}
TAGS = {"type": "structural_tag", "format": FORMAT}
TAG_TEXT = json.dumps(TAGS)

FORMATS: dict[str, dict[str, Any]] = {
    "TextResponse": {"type": "text"},
    "ObjectResponse": {"type": "json_object"},
    "SchemaResponse": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    "StructuralTag": TAGS,
}
"""Class -> the response_format that its fields are tried in."""


def structured_body(owner: str, name: str, value: list[Any]) -> dict[str, Any]:
    """Fields of a chat with the one ``value``, or without, in a field of one of these objects."""
    given = {name: value[0]} if value else {}
    if owner == "StructuredOutputs":
        alone = name in ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
        return {"structured_outputs": given if alone else {"json": SCHEMA} | given}
    if owner == "StructuralTag" and name in ("structures", "triggers"):
        return {"response_format": OLDER_TAGS | given}
    if owner in FORMATS:
        return {"response_format": FORMATS[owner] | given}
    if owner == "JsonSchemaFormat":
        inner = {"schema": SCHEMA} | given
        return {"response_format": {"type": "json_schema", "json_schema": inner}}
    if owner == "TaggedStructure":
        return {"response_format": OLDER_TAGS | {"structures": [OLDER_TAG | given]}}
    changed = {
        "TriggeredTags": FORMAT | given,
        "TagFormat": FORMAT | {"tags": [TAG | given]},
        "TagContent": FORMAT | {"tags": [TAG | {"content": TAG["content"] | given}]},  # type: ignore[operator]
    }
    return {"response_format": TAGS | {"format": changed[owner]}}


def _text(changes: list[Any], refused: list[Any], **more: Any) -> Verdict:
    return Verdict(changes, [], [*refused, 5, True, ["x"]], **more)


KIND = Verdict(refused=["x", 5, [], {}])
TAG_BEGIN = Verdict(["<g>"], ["<f>"], ["", 5, [], ">"], null=False)
TAG_END = Verdict(["</g>", ""], ["</f>"], [5, []], null=False)
SCHEMA_VERDICT = Verdict([OTHER], [SCHEMA], ["x", 5, [], {"type": "x"}], null=False)
NOWHERE = Verdict(no_effect=True)
STRUCTURED = {
    "Structured.response_format": Verdict(
        [*(FORMATS[name] for name in FORMATS if name != "TextResponse"), OLDER_TAGS],
        [{"type": "text"}],
        ["x", 5, [], {}, {"type": "x"}, {"type": "text", "x": 1}, {"type": "json_schema"}],
    ),
    "Structured.structured_outputs": Verdict(
        [{"regex": "a"}, {"json": {}}], [{}], ["x", 5, [], {"x": 1}, {"regex": 1}]
    ),
    "Structured.guided_json": Verdict([SCHEMA, '{"type": "array"}'], ["", {}], ["x", 5, [], False]),
    "Structured.guided_regex": Verdict(["a+"], [""], ["(", 5, [], {}, False]),
    "Structured.guided_choice": Verdict([["a"]], [[]], ["x", 5, [1], [""], {}, False]),
    "Structured.guided_grammar": Verdict(['start: "a"'], [""], ["(", 5, [], False]),
    "Structured.guided_json_object": switch(),
    "Structured.guided_whitespace_pattern": Verdict(
        ["[ \n]?"], [""], ["(", 5, [], False], beside={"guided_json": SCHEMA}
    ),
    "Structured.guided_decoding_backend": NOWHERE,
    "Structured.structural_tag": Verdict(
        [TAG_TEXT, json.dumps(OLDER_TAGS)], [""], ["x", "{}", 5, [], {}]
    ),
    "TextResponse.type": KIND,
    "ObjectResponse.type": KIND,
    "SchemaResponse.type": KIND,
    "SchemaResponse.json_schema": Verdict(
        [{"schema": OTHER}], [{"schema": SCHEMA}], ["x", 5, [], {}, {"x": 1}], null=False
    ),
    "StructuralTag.type": KIND,
    "StructuralTag.structures": Verdict(
        [[OLDER_TAG, OLDER_TAG | {"begin": "<g>"}]], [[OLDER_TAG]], [[], {}, [{}], "x"], null=False
    ),
    "StructuralTag.triggers": Verdict(
        [["<f"]], [["<"]], [[], [""], ["x"], [5], "x", {}], null=False
    ),
    "StructuralTag.format": Verdict(
        [FORMAT | {"at_least_one": True}], [FORMAT], ["x", 5, [], {}], null=False
    ),
    "JsonSchemaFormat.name": Verdict([], ["a", ""], [5, [], "x" * 300]),
    "JsonSchemaFormat.description": NOWHERE,
    "JsonSchemaFormat.schema": SCHEMA_VERDICT,
    "JsonSchemaFormat.strict": Verdict([], [True, False], [1, "x", []]),
    "TaggedStructure.begin": TAG_BEGIN,
    "TaggedStructure.schema": Verdict([OTHER, {}, None], [SCHEMA], ["x", 5, []], null=False),
    "TaggedStructure.end": TAG_END,
    "TriggeredTags.type": KIND,
    "TriggeredTags.triggers": Verdict([["<f"]], [["<"]], [[], [""], ["x"], "x"], null=False),
    "TriggeredTags.tags": Verdict(
        [[TAG, TAG | {"begin": "<g>"}]], [[TAG]], [[], [{}], "x"], null=False
    ),
    "TriggeredTags.at_least_one": switch(),
    "TriggeredTags.stop_after_first": switch(),
    "TagFormat.type": Verdict([], ["tag"], ["x", 5]),
    "TagFormat.begin": TAG_BEGIN,
    "TagFormat.content": Verdict(
        [{"type": "json_schema", "json_schema": OTHER}], [TAG["content"]], ["x", {}, 5], null=False
    ),
    "TagFormat.end": TAG_END,
    "TagContent.type": KIND,
    "TagContent.json_schema": SCHEMA_VERDICT,
    "StructuredOutputs.json": Verdict(
        [SCHEMA, '{"type": "array"}', {}], [], ["x", 5, [], True, "[]", {"type": "x"}]
    ),
    "StructuredOutputs.regex": _text(["a+"], ["(", {}]),
    "StructuredOutputs.choice": Verdict([["a"], ["a", "b"]], [], [[], "a", [5], ["a", "a"], {}]),
    "StructuredOutputs.grammar": _text(['start: "a"', 'root ::= "a"'], ["(", {}]),
    "StructuredOutputs.json_object": switch(),
    "StructuredOutputs.structural_tag": _text([TAG_TEXT], ["x", "{}", {}]),
    "StructuredOutputs.whitespace_pattern": _text(["[ \n]?", " *"], ["(", {}]),
    "StructuredOutputs.disable_any_whitespace": switch(),
    "StructuredOutputs.disable_additional_properties": switch(),
    "StructuredOutputs.disable_fallback": NOWHERE,
}
OWNERS = {key.partition(".")[0] for key in STRUCTURED} - {"Structured"}
