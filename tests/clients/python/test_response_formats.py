"""Response formats: what they become on the wire, and the objects that answers become."""

import dataclasses
import enum
import pickle
from collections.abc import Callable
from typing import Annotated, Literal

import httpx2
import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

import saccade_client as sdk

HEADERS = {"content-type": "text/event-stream", "x-request-id": "r-5"}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Thing(BaseModel):
    """A thing of the image."""

    colour: Colour
    size: Annotated[int, Field(ge=1, le=9)] = 1
    parts: list["Thing"] = []


@dataclasses.dataclass
class Pair:
    left: int
    right: int


class Row(TypedDict):
    name: str


def replying(*texts, finish_reason="stop", **fields):
    choices = [
        {
            "index": at,
            "message": {"role": "assistant", "content": text, **fields},
            "finish_reason": finish_reason,
        }
        for at, text in enumerate(texts)
    ]
    payload = {"id": "c1", "choices": choices, "usage": {"completion_tokens": 3}}
    return lambda request: httpx2.Response(200, json=payload, headers={"x-request-id": "r-9"})


def parse(harness, handler, kind=Thing, **options):
    return harness.ask(handler, lambda client: client.parse("x", kind, model="m", **options))


def test_a_model_goes_out_and_an_object_comes_back(harness):
    answer = parse(harness, replying('{"colour": "red", "size": 3}'), temperature=0)
    assert answer.parsed == Thing(colour=Colour.RED, size=3)
    assert (answer.text, answer.request_id) == ('{"colour": "red", "size": 3}', "r-9")
    assert answer.usage.completion_tokens == 3
    assert isinstance(answer, sdk.ChatCompletion)
    body = harness.bodies[0]
    assert (body["temperature"], body["messages"][0]["content"]) == (0, "x")
    form = body["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"].keys() == {"name", "schema", "strict"}
    assert (form["json_schema"]["name"], form["json_schema"]["strict"]) == ("Thing", True)
    schema = form["json_schema"]["schema"]
    assert schema["type"] == "object"
    assert schema["required"] == ["colour"]
    assert schema["properties"]["size"] == {
        "default": 1, "type": "integer", "minimum": 1, "maximum": 9
    }  # fmt: skip
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Thing"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Pair, '{"left": 1, "right": 2}', Pair(1, 2)),
        (Row, '{"name": "x"}', {"name": "x"}),
        (list[Pair], '[{"left": 1, "right": 2}]', [Pair(1, 2)]),
        (Colour, '"blue"', Colour.BLUE),
        (Literal["a", "b"], '"b"', "b"),
        (int | None, "null", None),
        (dict, '{"a": [1]}', {"a": [1]}),
        (Annotated[int, []], "3", 3),
    ],
)
def test_any_type_that_pydantic_knows(harness, kind, text, value):
    assert parse(harness, replying(text), kind).parsed == value
    name = harness.bodies[0]["response_format"]["json_schema"]["name"]
    assert 0 < len(name) <= 64
    assert name.replace("_", "").replace("-", "").isalnum()


def test_all_choices_are_read(harness):
    answer = parse(harness, replying("1", "2"), int, n=2)
    assert (answer.parsed, answer.all_parsed) == (1, [1, 2])


@pytest.mark.parametrize(
    ("handler", "kind", "reason"),
    [
        (replying('{"colour": "re', finish_reason="length"), sdk.AnswerTruncated, "max_tokens"),
        (replying('{"colour": "red"}', finish_reason="length"), sdk.AnswerTruncated, "length"),
        (replying(None, refusal="no"), sdk.AnswerRefused, "refused: no"),
        (replying("", finish_reason="content_filter"), sdk.AnswerRefused, "filter"),
        (replying("a red thing"), sdk.AnswerInvalid, "no Thing: Invalid JSON"),
        (replying(""), sdk.AnswerInvalid, "JSON"),
        (replying('{"colour": "green"}'), sdk.AnswerInvalid, "colour: Input should be 'red'"),
        (replying('{"colour": "red"}', '{"size": 0}'), sdk.AnswerInvalid, "colour: Field required"),
        (replying("[" * 10_000), sdk.AnswerInvalid, "no Thing"),
        (
            replying(None, tool_calls=[{"function": {"name": "f"}}], finish_reason="tool_calls"),
            sdk.AnswerInvalid,
            "called tools",
        ),
        (replying(), sdk.AnswerInvalid, "no choices"),
    ],
)
def test_what_is_no_object_is_an_error_that_carries_the_answer(harness, handler, kind, reason):
    with pytest.raises(kind, match=reason) as caught:
        parse(harness, handler, n=2)
    error = caught.value
    assert isinstance(error, sdk.AnswerError)
    assert error.answer.usage.completion_tokens == 3
    assert error.request_id == "r-9"
    choices = error.answer.choices
    assert error.text in [choice.text for choice in choices] or not choices
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.text) == (type(error), str(error), error.text)
    assert copy.answer == error.answer


def test_a_few_mistakes_are_named(harness):
    text = '{"colour": "red", "parts": [' + ", ".join(["{}"] * 9) + "]}"
    with pytest.raises(sdk.AnswerInvalid, match=r"parts\.4\.colour: .*; and 4 more$"):
        parse(harness, replying(text))


class Broken:
    pass


@pytest.mark.parametrize("kind", [Broken, list[Broken], 3, "Thing", Callable[[], int]])
def test_what_is_no_type_is_refused(harness, kind):
    with pytest.raises(sdk.InvalidInput, match="cannot be described by a JSON Schema"):
        parse(harness, replying("{}"), kind)
    assert harness.requests == []


def test_a_schema_is_no_type(harness):
    with pytest.raises(sdk.InvalidInput, match=r"parse\(dict\)"):
        parse(harness, replying("{}"), {"type": "object"})


def test_parse_has_its_form_already(harness):
    for options in ({"response_format": Thing}, {"regex": "a"}):
        with pytest.raises(TypeError):
            parse(harness, replying("{}"), **options)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("given", "wire"),
    [
        ({"type": "json_object"}, {"type": "json_object"}),
        ({"type": "text"}, {"type": "text"}),
        ({"type": "jsonschema"}, {"type": "jsonschema"}),
        (SCHEMA, {"name": "answer", "schema": SCHEMA}),
        ({"anyOf": [SCHEMA]}, {"name": "answer", "schema": {"anyOf": [SCHEMA]}}),
        ({"type": ["string", "null"]}, {"name": "answer", "schema": {"type": ["string", "null"]}}),
        ({"title": "A b!", **SCHEMA}, {"name": "A_b", "schema": {"title": "A b!", **SCHEMA}}),
    ],
)
def test_formats_of_a_chat(harness, given, wire):
    answer = harness.ask(
        replying('{"a": 1}'), lambda client: client.chat("x", model="m", response_format=given)
    )
    if "schema" in wire:
        wire = {"type": "json_schema", "json_schema": {**wire, "strict": True}}
    assert harness.bodies[0]["response_format"] == wire
    assert answer.parse(dict) == {"a": 1}
    assert answer.choices[0].parse(dict[str, int]) == {"a": 1}


def test_regular_expressions_choices_and_grammars(harness):
    for name, given in (("regex", "a+"), ("choice", ("a", "b")), ("grammar", "root ::= x")):
        harness.ask(
            replying("a"), lambda client, n=name, g=given: client.chat("x", model="m", **{n: g})
        )
        wire = list(given) if name == "choice" else given
        assert harness.bodies[-1]["structured_outputs"] == {name: wire}
    for options in ({"regex": "a", "choice": ["a"]}, {"regex": "a", "response_format": Thing}):
        with pytest.raises(sdk.InvalidInput, match="one form"):
            harness.ask(replying("a"), lambda client, o=options: client.chat("x", model="m", **o))
    harness.ask(
        lambda request: httpx2.Response(200, json={"choices": [{"text": "a"}]}),
        lambda client: client.complete("x", model="m", response_format=Thing),
    )
    assert harness.bodies[-1]["response_format"]["type"] == "json_schema"


def test_a_plain_continuation_is_read_as_well(harness):
    def ask(*choices):
        reply = lambda request: httpx2.Response(200, json={"choices": list(choices)})
        return harness.ask(reply, lambda client: client.complete("x", model="m"))

    assert ask({"text": "[1]"}).parse(list[int]) == [1]
    for choices, kind in (
        ([], sdk.AnswerInvalid),
        ([{"text": "[1"}], sdk.AnswerInvalid),
        ([{"text": "[1]", "finish_reason": "length"}], sdk.AnswerTruncated),
    ):
        answer = ask(*choices)
        with pytest.raises(kind) as caught:
            answer.parse(list[int])
        assert caught.value.answer is answer


def test_the_receipt_of_a_form(harness):
    receipt = {"kind": "regex", "constrained_tokens": 12, "forced_tokens": 7, "complete": True}
    payload = {"choices": [{"message": {"content": "a"}, "structured_output": receipt}]}
    answer = harness.ask(
        lambda request: httpx2.Response(200, json=payload),
        lambda client: client.chat("x", model="m", regex="a"),
    )
    found = answer.structured_output
    assert (found.kind, found.constrained_tokens, found.forced_tokens) == ("regex", 12, 7)
    assert found.complete


def streamed(harness, sse, pieces, *texts, finish_reason="stop", **last):
    parts = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    end = {"index": 0, "delta": {}, "finish_reason": finish_reason, **last}
    body = pieces(sse(*parts, {"choices": [end]}, "[DONE]"))
    return harness.stream(
        lambda request: httpx2.Response(200, headers=HEADERS, stream=body),
        lambda client: client.stream_parse("x", Thing, model="m"),
    )


def test_a_streams_end_is_the_object(harness, sse, pieces):
    receipt = {"kind": "json_schema", "constrained_tokens": 2, "complete": True}
    chunks, stream = streamed(
        harness, sse, pieces, '{"col', 'our": "blue"}', structured_output=receipt
    )
    assert "".join(chunk.text for chunk in chunks) == stream.text == '{"colour": "blue"}'
    assert stream.final.parsed == Thing(colour=Colour.BLUE)
    assert stream.final.request_id == "r-5"
    assert stream.final.structured_output.constrained_tokens == 2
    assert harness.bodies[0]["response_format"]["json_schema"]["name"] == "Thing"
    assert harness.bodies[0]["stream"] is True


def test_a_stream_that_ends_in_no_object(harness, sse, pieces):
    _, stream = streamed(harness, sse, pieces, '{"col', finish_reason="length")
    with pytest.raises(sdk.AnswerTruncated) as caught:
        _ = stream.final
    assert (caught.value.text, caught.value.request_id) == ('{"col', "r-5")
    assert caught.value.answer.text == '{"col'
