"""Tools: what they become on the wire, and what is made of the calls that come back."""

import dataclasses
import enum
import functools
import json
from collections.abc import Callable
from typing import Annotated, Literal

import httpx2
import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel
from typing_extensions import TypedDict

import saccade_client as sdk


class Where(BaseModel):
    """Look at a place."""

    place: str = Field(description="Left or right.")
    zoom: float = 1.0


@dataclasses.dataclass
class Spot:
    x: int
    y: int


class Node(BaseModel):
    """A tree."""

    children: list["Node"] = []


def look(place: Literal["left", "right"], zoom: float = 1.0, *, spots: list[Spot] | None = None):
    """Look at a place.

    Slowly.
    """
    return f"{place} at {zoom}, {spots}"


def answering(*calls, content=None, finish_reason="tool_calls", **message):
    entries = [
        {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for at, (name, arguments) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": content, "tool_calls": entries, **message}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return lambda request: httpx2.Response(200, json={"choices": [choice]})


def sent(harness, **options):
    harness.ask(answering(), lambda client: client.chat("x", model="m", **options))
    return harness.bodies[-1]


def test_a_function_is_described_by_its_signature_and_its_docstring(harness):
    (tool,) = sent(harness, tools=[look])["tools"]
    assert tool["type"] == "function"
    assert tool["function"].keys() == {"name", "description", "parameters"}
    assert tool["function"]["name"] == "look"
    assert tool["function"]["description"] == "Look at a place.\n\nSlowly."
    parameters = tool["function"]["parameters"]
    assert parameters["properties"]["place"] == {"enum": ["left", "right"], "type": "string"}
    assert parameters["properties"]["zoom"] == {"default": 1.0, "type": "number"}
    assert parameters["required"] == ["place"]
    assert parameters["additionalProperties"] is False
    spot = parameters["$defs"]["Spot"]
    assert (spot["required"], spot["additionalProperties"]) == (["x", "y"], False)


def test_types_are_tools_as_well(harness):
    class Plan(TypedDict):
        steps: list[str]

    where, spot, plan, node = sent(harness, tools=[Where, Spot, Plan, Node])["tools"]
    assert where["function"]["description"] == "Look at a place."
    assert where["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "place": {"type": "string", "description": "Left or right."},
            "zoom": {"type": "number", "default": 1.0},
        },
        "required": ["place"],
        "additionalProperties": False,
    }
    assert spot["function"] == {
        "name": "Spot",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
            "required": ["x", "y"],
            "additionalProperties": False,
        },
    }
    assert plan["function"]["parameters"]["required"] == ["steps"]
    assert node["function"]["parameters"]["properties"]["children"]["items"] == {
        "$ref": "#/$defs/Node"
    }
    assert node["function"]["parameters"]["type"] == "object"


def test_an_object_goes_as_it_is_and_tool_changes_what_a_source_says(harness):
    given = {"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}}
    made = sdk.tool(look, name="peer", description="Peer.", strict=True)
    body = sent(harness, tools=(given, made), parallel_tool_calls=False)
    assert body["tools"][0] == given
    assert body["parallel_tool_calls"] is False
    function = body["tools"][1]["function"]
    assert (function["name"], function["description"], function["strict"]) == (
        "peer", "Peer.", True
    )  # fmt: skip
    assert sdk.tool(given, strict=True)["function"] == {**given["function"], "strict": True}
    assert "strict" not in given["function"]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    known: int


class Held(BaseModel):
    call: Callable[[], int] | int


class Numbers(RootModel[list[int]]):
    pass


class Unknown:
    pass


def bare(place):
    """No annotation."""


def starred(*places: str):
    """No names."""


def positional(place: str, /):
    """No name."""


def quoted(place: "Nowhere"):  # noqa: F821
    """Nobody knows this type."""


def opaque(place: object = 3, thing: Callable[[], int] = len):
    """JSON has no functions."""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (bare, "'place' has no type annotation"),
        (starred, "names"),
        (positional, "names"),
        (quoted, "Nowhere"),
        (opaque, "cannot be described"),
        (Held, "cannot be described"),
        (Numbers, "are an object"),
        (int, "are an object"),
        (lambda place: place, "name"),
        (functools.partial(look, "left"), "name"),
        (3, "is int"),
        ("look", "is str"),
        (None, "is NoneType"),
    ],
)
def test_what_cannot_be_described_is_refused(harness, source, reason):
    with pytest.raises(sdk.InvalidInput, match=reason):
        sent(harness, tools=[source])
    assert harness.requests == []


class Looker:
    __hash__ = None

    def __call__(self, place: str) -> str:
        return place


def test_an_object_that_can_be_called_is_no_function():
    for source in (Looker(), functools.partial(look, "left")):
        with pytest.raises(sdk.InvalidInput, match="cannot be described"):
            sdk.tool(source, name="look")
    assert sdk.tool(Looker().__call__, name="look")["function"]["parameters"]["required"] == [
        "place"
    ]


@pytest.mark.parametrize("tools", [look, Where, "look", {"type": "function"}])
def test_tools_are_a_list(harness, tools):
    with pytest.raises(sdk.InvalidInput, match="tools are a list"):
        sent(harness, tools=tools)


def test_a_type_that_takes_more_properties_says_so():
    assert sdk.tool(Open)["function"]["parameters"]["additionalProperties"] is True


def test_a_default_without_json_is_not_written_and_one_that_changes_is_kept():
    def f(kind: Annotated[enum.Enum | None, Field(description="k")] = None, names: list[str] = []):  # noqa: B006
        """F."""

    class Odd(BaseModel):
        thing: int = Field(default_factory=lambda: 3)

    parameters = sdk.tool(f)["function"]["parameters"]
    assert parameters["properties"]["names"]["items"] == {"type": "string"}
    assert "required" not in parameters
    assert sdk.tool(Odd)["function"]["parameters"]["properties"]["thing"] == {"type": "integer"}
    call = called("f", "{}")
    assert call.arguments_for(f) == {"kind": None, "names": []}


@pytest.mark.parametrize(
    ("choice", "wire"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ("look", {"type": "function", "function": {"name": "look"}}),
        (look, {"type": "function", "function": {"name": "look"}}),
        (Where, {"type": "function", "function": {"name": "Where"}}),
        ({"type": "function", "function": {"name": "look"}}, None),
    ],
)
def test_choices(harness, choice, wire):
    assert sent(harness, tools=[look, Where], tool_choice=choice)["tool_choice"] == (wire or choice)


@pytest.mark.parametrize("choice", ["requierd", Spot, 3, True])
def test_a_choice_is_one_of_the_tools(harness, choice):
    with pytest.raises(sdk.InvalidInput, match="tool_choice"):
        sent(harness, tools=[look, Where], tool_choice=choice)
    assert harness.requests == []


def called(name, arguments, id_="call_0"):
    function = {"name": name, "arguments": arguments}
    return sdk.ToolCall.model_validate({"id": id_, "type": "function", "function": function})


def test_calls_are_read_when_they_are_asked_for(harness):
    handler = answering(
        ("look", '{"place": "left", "spots": [{"x": 1, "y": 2}]}'), ("Where", '{"place": "up"}')
    )
    answer = harness.ask(handler, lambda client: client.chat("x", model="m", tools=[look, Where]))
    first, second = answer.tool_calls
    assert (answer.text, answer.choices[0].finish_reason) == ("", "tool_calls")
    assert (first.name, first.id) == ("look", "call_0")
    assert first.arguments == {"place": "left", "spots": [{"x": 1, "y": 2}]}
    kept = first.arguments_for(look)
    assert kept == {"place": "left", "zoom": 1.0, "spots": [Spot(1, 2)]}
    assert look(**kept) == "left at 1.0, [Spot(x=1, y=2)]"
    assert second.parse(Where) == Where(place="up")
    assert answer.choices[0].tool_calls == answer.tool_calls


@pytest.mark.parametrize("text", ["", "  ", None])
def test_no_arguments(text):
    def now():
        """Tell the time."""

    call = called("now", text)
    assert call.arguments == {}
    assert call.arguments_for(now) == {}


@pytest.mark.parametrize(
    "text",
    [
        '{"place":',
        "left",
        "[1]",
        "3",
        "null",
        '{"place": NaN}',
        "[" * 100_000,
        "1" * 5000,
    ],
)
def test_arguments_that_are_no_json_object(text):
    call = called("look", text)
    with pytest.raises(sdk.ArgumentsInvalid, match="the arguments of look") as caught:
        _ = call.arguments
    assert (caught.value.text, caught.value.call) == (text, call)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"place": "up"}', "place: "),
        ('{"zoom": 1}', "place: Field required"),
        ('{"place": "left", "zooom": 1}', "zooom"),
        ('{"place": "left"', "JSON"),
        ("[]", "do not fit"),
    ],
)
def test_arguments_that_do_not_fit(text, reason):
    call = called("look", text)
    with pytest.raises(sdk.ArgumentsInvalid, match=reason) as caught:
        call.arguments_for(look)
    assert caught.value.text == text
    assert isinstance(caught.value, sdk.AnswerError)
    if reason == "JSON":
        with pytest.raises(sdk.ArgumentsInvalid, match=reason):
            call.parse(Where)


def test_a_function_that_cannot_be_described_is_the_callers_mistake():
    with pytest.raises(sdk.InvalidInput, match="annotation"):
        called("bare", "{}").arguments_for(bare)
    with pytest.raises(sdk.InvalidInput, match="described"):
        called("bare", "{}").parse(Unknown)


def test_the_next_turn(harness):
    handler = answering(("look", '{"place": "left"}'), content="Let me see.", reasoning_content="h")
    answer = harness.ask(handler, lambda client: client.chat("x", model="m", tools=[look]))
    messages = [
        {"role": "user", "content": "What is left?"},
        answer.message,
        answer.tool_calls[0].reply({"seen": ("a", "b"), "gärten": 2}),
        answer.tool_calls[0].reply("nothing"),
        answer.tool_calls[0].reply(Where(place="left")),
    ]
    harness.ask(answering(content="done"), lambda client: client.chat(messages, model="m"))
    said, *results = harness.bodies[-1]["messages"][1:]
    function = {"name": "look", "arguments": '{"place": "left"}'}
    assert said == {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "h",
        "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
    }
    assert {(item["role"], item["tool_call_id"]) for item in results} == {("tool", "call_0")}
    assert [item["content"] for item in results] == [
        '{"seen": ["a", "b"], "gärten": 2}', "nothing", '{"place":"left","zoom":1.0}'
    ]  # fmt: skip
    with pytest.raises(sdk.InvalidInput, match="the result of look is object"):
        answer.tool_calls[0].reply(object())
    with pytest.raises(sdk.InvalidInput, match="JSON"):
        answer.tool_calls[0].reply(float("nan"))


def test_a_message_without_calls_goes_back_without_them(harness):
    handler = answering(content="hello", finish_reason="stop", refusal=None)
    answer = harness.ask(handler, lambda client: client.chat("x", model="m"))
    assert answer.message.entry() == {"role": "assistant", "content": "hello"}
    assert json.loads(json.dumps(answer.message.entry())) == answer.message.entry()
