"""Tools, forms and reasoning against a real server with a tiny model of Qwen3's template."""

import asyncio
import re
from pathlib import Path
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


STRICT = sdk.tool(get_weather, strict=True)


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


def test_a_call_of_its_own_accord(client):
    asked = {"temperature": 0, "max_tokens": 200, "tools": [STRICT]}
    answer = client.chat("What is the weather in Paris?", **asked)
    (call,) = answer.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.id.startswith("call_")
    assert get_weather(**call.arguments_for(get_weather)).startswith("It is warm in ")
    with client.stream_chat("What is the weather in Paris?", **asked) as stream:
        told = [piece for chunk in stream for piece in chunk.tool_calls]
    assert "".join(piece.function.arguments or "" for piece in told) == call.function.arguments
    (streamed,) = stream.final.tool_calls
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    assert (stream.final.reasoning, stream.final.text) == (answer.reasoning, answer.text)
    assert answer.reasoning
    assert client.models()[0].accepts_tools


def test_what_only_looks_like_a_call_stays_text(client):
    """Left alone the tiny model opens a call, and then writes words."""
    answer = client.chat("Paris?", temperature=0, max_tokens=200, tools=[get_weather])
    assert (answer.tool_calls, "<tool_call>" in answer.text) == ([], True)


def test_the_next_turn_has_the_call_and_its_result(client):
    asked = {"temperature": 0, "max_tokens": 200, "tools": [STRICT]}
    question = {"role": "user", "content": "What is the weather in Paris?"}
    answer = client.chat([question], **asked)
    messages = [question, answer.message, answer.tool_calls[0].reply({"warm": "very"})]
    tokens = client.tokenize(messages=messages, tools=[STRICT]).tokens
    prompt = client.detokenize(tokens)
    for part in ('"name": "get_weather"', '"warm": "very"', "Tell the weather in a city."):
        assert part in prompt
    assert client.chat(messages, **asked).usage.prompt_tokens == len(tokens)


def test_no_tools_are_called_where_none_may_be(client):
    answer = client.chat("Hello?", tools=[get_weather], tool_choice="none", max_tokens=50)
    assert answer.tool_calls == []
    count = client.tokenize(messages="Hello?").count
    assert client.tokenize(messages="Hello?", tools=[get_weather]).count > count


@pytest.mark.parametrize("choice", ["required", get_weather, "get_weather"])
def test_a_call_that_must_be(client, choice):
    asked = {"temperature": 0, "max_tokens": 400, "tools": [get_weather, Person]}
    answer = client.chat("Paris?", tool_choice=choice, parallel_tool_calls=False, **asked)
    (call,) = answer.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.structured_output.kind == "tools"
    assert answer.structured_output.complete
    if call.name == "Person":
        assert choice == "required"
        assert call.parse(Person)
    else:
        assert get_weather(**call.arguments_for(get_weather)).startswith("It is warm in ")
    with client.stream_chat("Paris?", tool_choice=choice, parallel_tool_calls=False, **asked) as it:
        list(it)
    streamed = it.final
    assert streamed.message.model_dump(exclude={"tool_calls"}) == answer.message.model_dump(
        exclude={"tool_calls"}
    )
    assert [each.function for each in streamed.tool_calls] == [call.function]


def test_tools_and_a_form(client):
    asked = {"temperature": 0, "max_tokens": 400, "tools": [get_weather]}
    answer = client.chat("Who?", response_format=Person, **asked)
    if answer.tool_calls:
        with pytest.raises(sdk.ArgumentsInvalid, match="do not fit"):
            answer.tool_calls[0].arguments_for(get_weather)
        with pytest.raises(sdk.AnswerInvalid, match="called tools"):
            answer.parse(Person)
    else:
        assert answer.parse(Person)
    with pytest.raises(sdk.BadRequest) as caught:
        client.chat("Who?", tools=[get_weather, get_weather])
    assert caught.value.param.startswith("tools[1]")


def test_the_page_of_the_sdk_runs(client):
    """Its block about tools, which the demo model does not know."""
    page = (Path(__file__).parents[3] / "clients/python/README.md").read_text()
    block = page.partition("## Tools\n\n```python\n")[2].partition("```")[0]
    names: dict = {"client": client, "Literal": Literal}
    exec(compile(block, "README.md", "exec"), names)
    assert [message["role"] for message in names["messages"] if isinstance(message, dict)] == [
        "user", *["tool"] * len(names["answer"].tool_calls)
    ]  # fmt: skip
