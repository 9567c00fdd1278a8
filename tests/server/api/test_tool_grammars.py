"""What answers may be under the grammar that a choice of tools makes."""

import time
from typing import Any

import numpy as np
import pytest

from saccade_server.grammars.compiling import compiled
from saccade_server.grammars.grammar import GrammarKind
from saccade_server.grammars.vocabulary import BYTES
from saccade_server.models.tool_format import ToolFormat
from saccade_testing.api.fakes import HERMES
from saccade_testing.api.server import Server

LLAMA = ToolFormat(
    lead="",
    trail="",
    between=None,
    parts=('{"name": "', '", "parameters": ', "}"),
    name_first=True,
    name_key="name",
    arguments_key="parameters",
)
ARGUMENTS_FIRST = ToolFormat(
    lead="<tool_call>\n",
    trail="\n</tool_call> ",
    between="\n</tool_call> \n<tool_call>\n",
    parts=('{ "arguments": ', ', "name": "', '"}'),
    name_first=False,
    name_key="name",
    arguments_key="arguments",
)
ZONES = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
UTC, OTHER = '{"zone": "UTC"}', '{"zone": "EST"}'


def tool(name: str, strict: bool | None = None, parameters: Any = ZONES) -> dict[str, Any]:
    function = {"name": name, "strict": strict, "parameters": parameters}
    return {"type": "function", "function": function}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def source_of(server: Server, form: ToolFormat = HERMES, **fields: Any) -> str | None:
    """The grammar with which a request reaches the engine."""
    server.renew()
    server.prompts.tool_format = form
    try:
        answer = server.chat(**fields)
        assert answer.status_code == 200, answer.text
        grammar = server.engine.requests[0].grammar
        assert grammar is None or grammar.kind is GrammarKind.TOOLS
        return None if grammar is None else grammar.source
    finally:
        server.prompts.tool_format = HERMES


def allows(source: str | None, text: str) -> bool:
    """Whether an answer may be ``text`` as a whole."""
    assert source is not None
    matcher = compiled(source, BYTES)
    row = np.zeros(BYTES.words, np.int32)
    for token in [*text.encode(), 256]:
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if not row.view(np.uint32)[token // 32] >> np.uint32(token % 32) & 1:
            return False
        if token != 256:
            assert matcher.consume_token(token)
    return True


def call(name: str, arguments: str = UTC, form: ToolFormat = HERMES) -> str:
    return form.write([(name, arguments)])


A, B = tool("a"), tool("b")


def test_one_or_more_must_be_called(server: Server) -> None:
    source = source_of(server, tools=[A, B], tool_choice="required")
    for text in (call("a"), call("b"), HERMES.write([("a", UTC), ("b", UTC), ("a", UTC)])):
        assert allows(source, text)
    for text in ("", "Hello", call("c"), call("a", OTHER), "x" + call("a"), call("a") + "x",
                 call("a", "{}"), call("a")[:-1], call("a") + call("b")):  # fmt: skip
        assert not allows(source, text), text


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required", "parallel_tool_calls": False},
        {"tool_choice": named("a")},
        {"tool_choice": named("a"), "parallel_tool_calls": True},
    ],
)
def test_just_one_is_called(server: Server, fields: dict[str, Any]) -> None:
    source = source_of(server, tools=[A, B], **fields)
    assert allows(source, call("a"))
    assert not allows(source, HERMES.write([("a", UTC), ("a", UTC)]))
    assert allows(source, call("b")) == (fields["tool_choice"] == "required")


def test_a_tool_without_parameters_takes_none(server: Server) -> None:
    source = source_of(server, tools=[tool("f", parameters=None)], tool_choice="required")
    assert allows(source, call("f", "{}"))
    assert not allows(source, call("f", UTC))


def test_some_of_the_tools(server: Server) -> None:
    for mode in ("auto", "required"):
        choice = {"mode": mode, "tools": [named("b")]}
        allowed = {"type": "allowed_tools", "allowed_tools": choice}
        source = source_of(server, tools=[A, B], tool_choice=allowed)
        assert allows(source, call("b"))
        assert not allows(source, call("a"))
        assert allows(source, "Hello") == (mode == "auto")


def test_strict_tools_among_free_text(server: Server) -> None:
    assert source_of(server, tools=[A, B]) is None
    source = source_of(server, tools=[tool("a", strict=True), B])
    for text in ("", "Hello <b>", "Hm.\n" + call("a"), call("a") + "\n" + call("b", OTHER) + "."):
        assert allows(source, text), text
    for text in (call("a", OTHER), call("c"), "<tool_call>", call("b", "[]")):
        assert not allows(source, text), text


def test_free_text_with_one_call_at_most(server: Server) -> None:
    source = source_of(server, tools=[A, B], parallel_tool_calls=False)
    for text in ("", "Hello", call("a", OTHER), "Hm. " + call("b", "{}")):
        assert allows(source, text), text
    for text in (call("a") + "\n" + call("a"), call("a") + " Well."):
        assert not allows(source, text), text


def test_a_format_without_markers(server: Server) -> None:
    tools = [tool("a", strict=True), B]
    held = source_of(server, LLAMA, tools=tools, tool_choice="required")
    source = source_of(server, LLAMA, tools=tools)
    one = call("a", UTC, LLAMA)
    assert allows(held, one)
    for text in ("", "  ", "Hello {", "\nThe time.", one, call("b", OTHER, LLAMA)):
        assert allows(source, text), text
        assert allows(held, text) == (text == one)
    for text in ("{", call("a", OTHER, LLAMA), " {}", one + "; " + one, one + "x"):
        assert not allows(source, text), text


def test_arguments_before_the_name(server: Server) -> None:
    other = tool("b", parameters={"type": "object", "properties": {"x": {"type": "integer"}}})
    source = source_of(server, ARGUMENTS_FIRST, tools=[A, other], tool_choice="required")
    integer = '{"x": 1}'
    for name, arguments in (("a", UTC), ("b", integer)):
        assert allows(source, call(name, arguments, ARGUMENTS_FIRST))
    for name, arguments in (("a", integer), ("b", '{"x": ""}'), ("c", UTC)):
        assert not allows(source, call(name, arguments, ARGUMENTS_FIRST))


def test_a_structured_answer_or_calls(server: Server) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
              "additionalProperties": False}  # fmt: skip
    response = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for form in (HERMES, LLAMA):
        source = source_of(server, form, tools=[A], response_format=response)
        for text in ('{"city": "Rome"}', call("a", UTC, form), call("a", OTHER, form)):
            assert allows(source, text), text
        for text in ("Hello", '{"city": 1}', "", call("b", UTC, form)):
            assert not allows(source, text), text
    held = source_of(server, tools=[A], response_format=response, tool_choice="required")
    assert not allows(held, '{"city": "Rome"}')
    text = source_of(server, tools=[A], response_format={"type": "text"})
    assert text is None
    any_object = source_of(server, tools=[A], response_format={"type": "json_object"})
    assert allows(any_object, '{"x": []}')


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tool_choice": "required"},
        {"tool_choice": named("b")},
        {"response_format": {"type": "json_object"}},
    ],
)
@pytest.mark.parametrize("form", [HERMES, LLAMA, ARGUMENTS_FIRST], ids=["hermes", "llama", "first"])
@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "strange"}, ".type"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, ".minimum"),
        ({"type": "object", "properties": {"y": False}, "required": ["y"]}, ".required"),
    ],
)
def test_schemas_that_no_arguments_follow(
    server: Server, fields: Any, form: ToolFormat, schema: Any, path: str
) -> None:
    whole = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    tools = [A, tool("b", strict="response_format" in fields, parameters=whole)]
    server.prompts.tool_format = form
    try:
        error = server.chat(tools=tools, **fields).json()["error"]
    finally:
        server.prompts.tool_format = HERMES
    assert error["code"] == "invalid_grammar"
    assert error["param"] == f"tools[1].function.parameters.properties.x{path}"


def test_a_structured_answer_that_cannot_be_had(server: Server) -> None:
    schema = {"type": "object", "properties": {"x": False}, "required": ["x"]}
    response = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    error = server.chat(tools=[A], response_format=response).json()["error"]
    assert error["code"] == "invalid_grammar"
    assert error["param"] == "response_format.json_schema.schema.required"


def test_what_no_grammar_holds_is_refused_where_it_must_be_held(server: Server) -> None:
    odd = tool("b", parameters={"type": "object", "not": {"required": ["x"]}})
    assert server.chat(tools=[A, odd]).status_code == 200
    assert source_of(server, tools=[tool("a", strict=True), odd])
    for fields in ({"tool_choice": "required"}, {"tool_choice": named("b")}):
        error = server.chat(tools=[A, odd], **fields).json()["error"]
        assert error["code"] == "unsupported_grammar"
        assert error["param"].startswith("tools[1].function.parameters.not")


def test_hostile_schemas_are_answered_soon(server: Server) -> None:
    recursive = {"$ref": "#"}
    exploding = {"type": "string", "pattern": "(a{1,900}){1,900}(b{1,900}){1,900}"}
    for schema, statuses in ((recursive, {400}), (exploding, {200, 400})):
        whole = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
        for fields in ({}, {"tool_choice": "required"}):
            began = time.monotonic()
            answer = server.chat(tools=[tool("a", parameters=whole)], **fields)
            assert answer.status_code in statuses, answer.text
            assert time.monotonic() - began < 10


@pytest.mark.parametrize("form", [HERMES, LLAMA, ARGUMENTS_FIRST], ids=["hermes", "llama", "first"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"x": {"type": "integer"}}, "required": ["x"]},
        {"anyOf": [{"type": "string"}, {"required": ["x"]}]},
        {"$ref": "#/$defs/x", "$defs": {"x": {"required": ["x"]}}},
        {"required": ["x"]},
    ],
)
@pytest.mark.parametrize("fields", [{"tool_choice": "required"}, {"tool_choice": named("a")}, {}])
def test_arguments_are_an_object_also_where_their_schema_does_not_say_so(
    server: Server, form: ToolFormat, parameters: Any, fields: Any
) -> None:
    """Otherwise an answer that must call may be one that nobody takes for a call."""
    tools = [tool("a", strict=True, parameters=parameters)]
    source = source_of(server, form, tools=tools, **fields)
    assert allows(source, call("a", '{"x": 1}', form))
    for text in ("true", '"x"', "3", "null", "[]", "{}"):
        said = call("a", text, form)
        assert not allows(source, said), said


@pytest.mark.parametrize(
    ("more", "inside", "param", "meant"),
    [
        ({"strict": True}, {}, "tools[0].strict", "function.strict"),
        ({"parameters": ZONES}, {}, "tools[0].parameters", "function.parameters"),
        ({}, {"params": ZONES}, "tools[0].function.params", "function.parameters"),
        ({}, {"input_schema": ZONES}, "tools[0].function.input_schema", "function.parameters"),
    ],
)
def test_what_stands_in_the_wrong_place_is_not_lost(
    server: Server, more: Any, inside: Any, param: str, meant: str
) -> None:
    offered = {"type": "function", "function": {"name": "a", **inside}, **more}
    error = server.chat(tools=[offered]).json()["error"]
    assert (error["code"], error["param"]) == ("unknown_field", param)
    assert f"tools[0].{meant}" in error["message"]
    nothing = {name: None for name in more} | {"function": {"name": "a"} | dict.fromkeys(inside)}
    assert server.chat(tools=[{"type": "function", **nothing}]).status_code == 200


def test_what_is_remembered_is_told_apart(server: Server) -> None:
    """Grammars of requests that are alike but for one thing, asked for one behind the other."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": ZONES}}
    one = {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}
    both, must = [tool("a"), tool("b")], {"tool_choice": "required"}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("a", {"tools": [tool("a")], **must}),
        ("b", {"tools": [tool("b")], **must}),
        ("", {"tools": [tool("a", parameters=one)], **must}),
        ("ab", {"tools": both, **must}),
        ("a", {"tools": both, "tool_choice": named("a")}),
        ("b", {"tools": both, "tool_choice": named("b")}),
        ("a", {"tools": [tool("a")], "response_format": schema}),
        ("b", {"tools": [tool("b")], "response_format": schema}),
    ]
    for form in (HERMES, LLAMA):
        for names, fields in asked:
            source = source_of(server, form, **fields)
            assert source is not None
            held = "".join(name for name in "ab" if allows(source, call(name, UTC, form)))
            assert held == names, fields
            assert allows(source, UTC) == ("response_format" in fields)
