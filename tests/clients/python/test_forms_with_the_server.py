"""Forms of answers against the real HTTP layer: the server must understand what the SDK writes."""

import dataclasses
import datetime
import enum
import uuid
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

import saccade_client as sdk
from saccade_testing.api.server import check_servers, start_server


class Kind(enum.Enum):
    CAT = "cat"
    DOG = "dog"


class Box(BaseModel):
    """Where something is."""

    left: Annotated[int, Field(ge=0, le=999)]
    width: Annotated[float, Field(gt=0)]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(default=9, ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str = Field(min_length=1, max_length=20, pattern="^[A-Z][a-z]*$")


class Scene(BaseModel):
    """What pydantic can say of many things."""

    title: str | None = Field(default=None, description="Short.")
    main: Cat | Dog
    boxes: list[Box] = Field(default=[], max_length=3)
    kinds: dict[str, Kind] = {}
    seen: datetime.datetime
    id: uuid.UUID
    pair: tuple[int, str] = (0, "")
    parts: list["Scene"] = []


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    known: int


@dataclasses.dataclass
class Pair:
    left: int
    right: int | None = None


@pytest.fixture(scope="module")
def running():
    server = start_server(served_model_name="tiny")
    yield server
    server.stop()
    check_servers()


@pytest.fixture
def client(running):
    running.engine.requests.clear()
    with sdk.Saccade(running.url) as client:
        yield client


@pytest.mark.parametrize(
    "kind",
    [Scene, Box, Open, Pair, Kind, int, bool, list[Box], dict[str, Pair], Literal["a", "b"], dict],
)
def test_types_become_grammars(client, running, kind):
    answer = client.chat("x", response_format=kind)
    (request,) = running.engine.requests
    assert request.grammar.kind == "json_schema"
    assert answer.structured_output.kind == "json_schema"
    with pytest.raises(sdk.AnswerInvalid) as caught:
        client.parse("x", kind)
    assert (caught.value.text, caught.value.answer.text) == ("Hello, world!", "Hello, world!")
    with client.stream_parse("x", kind) as stream:
        list(stream)
    with pytest.raises(sdk.AnswerInvalid):
        _ = stream.final
    assert len({each.grammar.source for each in running.engine.requests}) == 1


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"response_format": {"type": "object"}}, "json_schema"),
        ({"regex": "[a-z]+"}, "regex"),
        ({"choice": ["yes", "no"]}, "choice"),
        ({"grammar": 'root ::= "yes" | "no"'}, "grammar"),
    ],
)
def test_other_forms(client, running, options, kind):
    assert client.chat("x", **options).structured_output.kind == kind
    assert client.complete("x", **options).choices[0].structured_output.kind == kind
    with client.stream_complete("x", **options) as stream:
        list(stream)
    assert stream.final.choices[0].structured_output.kind == kind
    assert [request.grammar.kind for request in running.engine.requests] == [kind] * 3


def test_what_ends_too_soon(client):
    with pytest.raises(sdk.AnswerTruncated) as caught:
        client.parse("x", str, max_tokens=5)
    assert caught.value.text == "Hello"
    assert not caught.value.answer.structured_output.complete


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"regex": "("}, "structured_outputs.regex"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"response_format": {"type": "jsn"}}, "response_format"),
        (
            {"response_format": {"type": "object", "properties": {"a": {"type": "nothing"}}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_refusals_name_the_place(client, options, param):
    with pytest.raises(sdk.BadRequest) as caught:
        client.chat("x", **options)
    assert caught.value.param.startswith(param)
