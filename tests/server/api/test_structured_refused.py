"""What a request may not say of its answers: refused at its place, before anything is begun."""

import json
from typing import Any

import pytest

from saccade_server.api.body.structured import LONGEST_TEXT
from saccade_server.api.metrics import names
from saccade_testing.api.server import Server
from saccade_testing.api.structured import NEWER, SCHEMA, TAGS, outputs, schema_format

HI = {"role": "user", "content": "Hi"}
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "two": (
        {"response_format": {"type": "json_object"}, **outputs(regex="a")},
        *("structured_outputs.regex", "response_format"),
    ),
    "two-of-one": (outputs(regex="a", choice=["a"]), "structured_outputs.choice", "regex"),
    "older-and-newer": (
        {"guided_json": SCHEMA, **outputs(json=SCHEMA)},
        "guided_json",
        "outputs.json",
    ),
    "no-type": ({"response_format": {}}, "response_format", "type"),
    "other-type": ({"response_format": {"type": "grammar"}}, "response_format", "json_schema"),
    "no-schema": (
        {"response_format": {"type": "json_schema"}},
        *("response_format.json_schema", "required"),
    ),
    "no-inner-schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        *("response_format.json_schema.schema", "required"),
    ),
    "misplaced-schema": (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        *("response_format.schema", ""),
    ),
    "unknown": (outputs(json_schema=SCHEMA), "structured_outputs.json_schema", ""),
    "spaces-of-nothing": (
        outputs(regex="a", disable_any_whitespace=True),
        *("structured_outputs.disable_any_whitespace", "JSON"),
    ),
    "spaces-alone": ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "JSON"),
    "two-spaces": (
        {"guided_whitespace_pattern": " ", **outputs(json_object=True, whitespace_pattern="")},
        *("guided_whitespace_pattern", "disagree"),
    ),
    "spaces-and-none": (
        outputs(json_object=True, whitespace_pattern=" ", disable_any_whitespace=True),
        *("structured_outputs.whitespace_pattern", "disagree"),
    ),
    "broken-text": (outputs(json='{"type": '), "structured_outputs.json", "valid JSON"),
    "twice-text": (outputs(json='{"a": 1, "a": 2}'), "structured_outputs.json", "twice"),
    "no-object-text": (outputs(json="[]"), "structured_outputs.json", "object"),
    "broken-tags": (outputs(structural_tag="{"), "structured_outputs.structural_tag", "valid JSON"),
    "half-tags": ({"response_format": {**TAGS, "triggers": None}}, "response_format", "triggers"),
    "both-tags": ({"response_format": TAGS | NEWER}, "response_format", "form"),
    "odd-tags": (
        {"structural_tag": json.dumps(TAGS | {"structures": [{"begin": "<f>"}]})},
        *("structural_tag.structures[0].end", "required"),
    ),
    "no-trigger": (
        {"response_format": {**TAGS, "triggers": ["<g"]}},
        *("response_format.structures[0]", "trigger"),
    ),
    "regex": (outputs(regex="(a"), "structured_outputs.regex", ""),
    "backend": ({"guided_regex": "(a"}, "guided_regex", ""),
    "choices": (outputs(choice=["a", "a"]), "structured_outputs.choice[1]", ""),
    "no-choices": (outputs(choice=[]), "structured_outputs.choice", ""),
    "choice-type": (outputs(choice=[5]), "structured_outputs.choice[0]", "text"),
    "schema-type": (
        {"response_format": schema_format([])},
        "response_format.json_schema.schema",
        "",
    ),
    "ignore-eos": ({"ignore_eos": True, **outputs(regex="a")}, "ignore_eos", "regex"),
    "min-tokens": ({"min_tokens": 5, **outputs(choice=["abc", "abcd"])}, "min_tokens", "4 bytes"),
    "no-answer": (
        {"max_tokens": 0, "prompt_logprobs": 1, **outputs(regex="a")},
        *("structured_outputs.regex", "max_tokens 0"),
    ),
    "unknown-guided": ({"guided_lua": "x"}, "guided_lua", "not supported"),
    "sglang": ({"regex": "x"}, "regex", "structured_outputs.regex"),
    "llama": ({"json_schema": SCHEMA}, "json_schema", "structured_outputs.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_its_place(server: Server, name: str) -> None:
    fields, param, says = REFUSED[name]
    answer = server.chat(**fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert says in error["message"]
    assert not server.engine.requests


def test_a_path_leads_into_the_schema(server: Server) -> None:
    inner = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a"}}}
    places: dict[str, dict[str, Any]] = {
        "response_format.json_schema.schema": {"response_format": schema_format(inner)},
        "structured_outputs.json": outputs(json=json.dumps(inner)),
        "guided_json": {"guided_json": inner},
    }
    for place, fields in places.items():
        error = server.chat(**fields).json()["error"]
        assert error["param"] == f"{place}.properties.a.pattern", error
        assert error["code"] == "invalid_grammar"
    unsure = {"type": "array", "items": {"not": {"type": "string"}}}
    error = server.chat(response_format=schema_format(unsure)).json()["error"]
    assert error["param"] == "response_format.json_schema.schema.items.not"
    assert error["code"] == "unsupported_grammar"


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": schema_format({"enum": ["x" * 1000 + str(i) for i in range(300)]})},
        outputs(grammar="x" * (LONGEST_TEXT + 1)),
        outputs(regex="a" * (LONGEST_TEXT + 1)),
        outputs(choice=["x" * 1000 + str(i) for i in range(300)]),
        outputs(choice=[str(i) for i in range(5000)]),
    ],
    ids=["schema", "grammar", "regex", "long-choices", "choices"],
)
def test_what_is_too_large_is_refused_unread(server: Server, fields: dict[str, Any]) -> None:
    checks = server.app.state.services.tally.histograms[names.GRAMMAR_CHECKS]
    before = sum(checks.counts)
    assert server.chat(**fields).status_code == 400
    assert sum(checks.counts) == before


NEARLY = {
    "response_formats": "response_format",
    "respons_format": "response_format",
    "Response-Format": "response_format",
    "responseFormat": "response_format",
    "response_schema": "response_format",
    "structured_output": "structured_outputs",
    "json_mode": "response_format",
    "format": "response_format",
    "nvext": "response_format",
    "tool": "tools",
    "toolChoice": "tool_choice",
    "tool-choise": "tool_choice",
}


@pytest.mark.parametrize("name", NEARLY)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_was_probably_meant_is_refused(server: Server, name: str, path: str) -> None:
    """The answer would come back as if nothing had been asked of it."""
    body = {"prompt": "a"} if path == "/v1/completions" else {"messages": [HI]}
    error = server.http.post(path, json=body | {name: {"type": "object"}}).json()["error"]
    assert (error["code"], error["param"]) == ("unknown_field", name)
    assert f'"{NEARLY[name]}"' in error["message"]
    assert not server.engine.requests
    for nothing in (None, False, {}, [], ""):
        assert server.http.post(path, json=body | {name: nothing}).status_code == 200


@pytest.mark.parametrize("name", ["response_id", "toolbox", "output", "future", "formatting"])
def test_names_of_other_things_are_let_through(server: Server, name: str) -> None:
    assert server.chat(**{name: "x"}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (outputs(disable_any_whitespace=True), "structured_outputs.disable_any_whitespace"),
        (outputs(whitespace_pattern="\n"), "structured_outputs.whitespace_pattern"),
        ({"guided_whitespace_pattern": "\n"}, "guided_whitespace_pattern"),
        (
            outputs(disable_additional_properties=True),
            "structured_outputs.disable_additional_properties",
        ),
    ],
)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_how_json_is_written_is_not_lost_beside_tools(
    server: Server, fields: dict[str, Any], param: str, choice: str
) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    asked = {"tools": tools, "response_format": schema_format(SCHEMA), **fields}
    error = server.chat(**asked, tool_choice=choice).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", param)
    assert server.chat(**asked, tool_choice="none").status_code == 200
