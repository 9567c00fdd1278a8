"""What nobody can follow, or should: refused with the place and within bounds, or answered."""

import resource
import time
from typing import Any

import pytest

from saccade_testing.api.server import Server
from saccade_testing.api.structured import outputs

SECONDS = 15.0
"""A check has one second of CPU time; a machine that does other things takes longer for it."""


def schema(value: object) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}
    }


def closed(**properties: object) -> dict[str, Any]:
    names = list(properties)
    found = {"type": "object", "properties": properties, "required": names}
    return found | {"additionalProperties": False}


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        found = {"type": "array", "items": found}
    return found


AT = "response_format.json_schema.schema"
BOMB = "((a{1,1000}){1,1000}){1,1000}"
RULES = "\n".join(f"r{at}: r{at + 1} r{at + 1}" for at in range(2000))
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "itself": (schema({"$ref": "#"}), "invalid_grammar", AT),
    "without-end": (schema(closed(a={"$ref": "#"})), "invalid_grammar", AT),
    "items-without-end": (
        schema(
            {
                "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}},
                "$ref": "#/$defs/a",
            }
        ),
        *("invalid_grammar", AT),
    ),
    "wide": (
        schema(closed(**{f"p{at}": {"type": "string"} for at in range(6000)})),
        *("grammar_too_large", AT),
    ),
    "lengths": (
        schema(closed(a={"type": "string", "minLength": 5, "maxLength": 2})),
        *("invalid_grammar", f"{AT}.properties.a.minLength"),
    ),
    "bounds": (
        schema(closed(a={"type": "integer", "minimum": 5, "maximum": 3})),
        *("invalid_grammar", f"{AT}.properties.a.minimum"),
    ),
    "never": (schema(closed(a=False)), "invalid_grammar", f"{AT}.required"),
    "long-texts": (
        schema({"type": "string", "minLength": 10**9}),
        *("grammar_too_large", f"{AT}.minLength"),
    ),
    "two-types": (
        schema({"allOf": [{"type": "string"}, {"type": "integer"}]}),
        *("invalid_grammar", AT),
    ),
    "elsewhere": (
        schema({"$ref": "http://example.com/x"}),
        *("unsupported_grammar", f"{AT}.$ref"),
    ),
    "look-around": (
        schema(closed(a={"type": "string", "pattern": "(?=a)b"})),
        *("unsupported_grammar", f"{AT}.properties.a.pattern"),
    ),
    "expression": (outputs(regex=BOMB), "grammar_too_large", "structured_outputs.regex"),
    "no-end": (
        outputs(grammar='start: start "a"'),
        *("invalid_grammar", "structured_outputs.grammar"),
    ),
    "many-rules": (
        outputs(grammar=f'start: r0\n{RULES}\nr2000: "a"'),
        *("grammar_too_large", "structured_outputs.grammar"),
    ),
}
BEARABLE: dict[str, dict[str, Any]] = {
    "recursive": schema({"type": "object", "properties": {"a": {"$ref": "#"}}}),
    "deep": schema(nested(45)),
    "many-values": schema({"enum": [f"x{at}" for at in range(20_000)]}),
    "many-items": schema({"type": "array", "items": {"type": "string"}, "maxItems": 10**8}),
    "long-texts": schema({"type": "string", "maxLength": 16_000}),
    "overlapping": outputs(regex="(.*a){40}"),
    "ambiguous": outputs(grammar='start: start start | "a" | '),
    "many-choices": outputs(choice=[f"choice {at}" for at in range(4096)]),
}
"""What sounds worse than it is."""


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_at_its_place(server: Server, name: str) -> None:
    fields, code, param = REFUSED[name]
    began = time.monotonic()
    answer = server.chat(**fields)
    assert time.monotonic() - began < SECONDS
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert len(error["message"]) < 400
    assert not server.engine.requests


@pytest.mark.parametrize("name", BEARABLE)
def test_it_is_no_problem(server: Server, name: str) -> None:
    began = time.monotonic()
    answer = server.chat(**BEARABLE[name])
    assert time.monotonic() - began < SECONDS
    assert answer.status_code == 200, answer.text


def test_it_takes_no_memory_of_the_server(server: Server) -> None:
    def most() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB

    server.chat(**outputs(regex="a"))
    before = most()
    for at in range(8):
        wide = {f"p{at}{item}": {"type": "string"} for item in range(6000)}
        assert server.chat(**schema(closed(**wide))).status_code == 400
    assert most() - before < 128 * 1024
