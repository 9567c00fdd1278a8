"""Tools, forms and reasoning against a real server with a tiny model of Qwen3's template."""

import asyncio
import re
from typing import Literal

import pytest
from pydantic import BaseModel, Field

import saccade_client as sdk
from saccade_testing.launch import Served

pytestmark = pytest.mark.slow


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=12)
    age: Literal[30, 40]
    town: Literal["Paris", "London"] | None = None


def get_weather(city: Literal["Paris", "London"], unit: Literal["celsius", "kelvin"]) -> str:
    """Tell the weather in a city."""
    return f"It is warm in {city}, by {unit}."


@pytest.fixture(scope="module")
def running(chat_folder, tmp_path_factory: pytest.TempPathFactory):
    """Left alone it thinks first, and then calls a tool."""
    folder = chat_folder("qwen3", "<think>", "<tool_call>")
    log = tmp_path_factory.mktemp("served") / "log"
    server = Served(log, folder, "--served-model-name", "tiny", "--no-self-test")
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()


@pytest.fixture
def client(running):
    with sdk.Saccade(running.url) as client:
        yield client


def test_reasoning(client):
    answer = client.chat("Hello?", temperature=0, max_tokens=200)
    assert answer.reasoning.strip()
    assert "<think>" not in answer.text + answer.reasoning
    assert 0 < answer.usage.reasoning_tokens < answer.usage.completion_tokens
    with client.stream_chat("Hello?", temperature=0, max_tokens=200) as stream:
        pieces = [chunk.reasoning for chunk in stream]
    assert "".join(pieces) == stream.final.reasoning == answer.reasoning
    assert stream.final.message == answer.message
    assert stream.final.usage.reasoning_tokens == answer.usage.reasoning_tokens
    silent = client.chat("Hello?", temperature=0, max_tokens=200, include_reasoning=False)
    assert (silent.reasoning, silent.text) == ("", answer.text)
    (model,) = client.models()
    assert model.reasoning_markers == ["<think>", "</think>"]


def test_an_object_behind_the_reasoning(client):
    asked = {"temperature": 0, "max_tokens": 400}
    answer = client.parse("Who is it?", Person, **asked)
    assert isinstance(answer.parsed, Person)
    assert answer.reasoning.strip()
    receipt = answer.structured_output
    assert (receipt.kind, receipt.complete) == ("json_schema", True)
    assert 0 < receipt.forced_tokens < receipt.constrained_tokens
    held = answer.usage.completion_tokens - answer.usage.reasoning_tokens
    assert receipt.constrained_tokens <= held
    with client.stream_parse("Who is it?", Person, **asked) as stream:
        said = "".join(chunk.text for chunk in stream)
    assert stream.final.parsed == answer.parsed
    assert said == answer.text
    assert stream.final.structured_output == receipt


def test_an_object_in_the_other_form(running):
    async def ask():
        async with sdk.AsyncSaccade(running.url) as client:
            asked = {"temperature": 0, "max_tokens": 400}
            answers = [client.parse(str(number), Person, **asked) for number in range(3)]
            async with client.stream_parse("0", Person, **asked) as stream:
                async for _ in stream:
                    pass
            return await asyncio.gather(*answers), stream.final

    answers, streamed = asyncio.run(ask())
    assert all(isinstance(answer.parsed, Person) for answer in answers)
    assert streamed.parsed == answers[0].parsed


def test_an_answer_that_is_cut_off(client):
    whole = client.parse("Who is it?", Person, temperature=0, max_tokens=400)
    for length in (1, 3, whole.usage.completion_tokens - 2):
        with pytest.raises(sdk.AnswerTruncated) as caught:
            client.parse("Who is it?", Person, temperature=0, max_tokens=length)
        assert caught.value.answer.usage.completion_tokens == length
        assert not caught.value.answer.structured_output.complete


def test_other_forms(client):
    asked = {"temperature": 0, "max_tokens": 200}
    assert client.chat("?", choice=["red", "blue"], **asked).text in ("red", "blue")
    assert re.fullmatch("[a-c]{2,5}!", client.chat("?", regex="[a-c]{2,5}!", **asked).text)
    numbers = client.parse("?", list[Literal[1, 2]], n=2, max_tokens=400)
    assert all(set(found) <= {1, 2} for found in numbers.all_parsed)
