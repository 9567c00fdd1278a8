"""OpenAI's own client: its helpers that take pydantic models."""

import json
import sys
from typing import Literal

import openai
from cases import API_KEY, BASE_URL, MODEL, run
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
ASK = [{"role": "user", "content": "Who lives by the sea?"}]


class Dog(BaseModel):
    name: str
    colour: Literal["brown", "black"]


class Person(BaseModel):
    name: str = Field(description="without a title")
    age: int
    dogs: list[Dog]
    spouse: "Person | None"


class get_weather(BaseModel):  # noqa: N801 - it becomes the name of a function
    """Look the weather up."""

    city: str
    unit: Literal["celsius", "fahrenheit"]


TOOL = openai.pydantic_function_tool(get_weather)
LOOSE = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look the weather up.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def parse_an_answer():
    completion = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Person)
    message = completion.choices[0].message
    assert isinstance(message.parsed, Person)
    assert completion.usage.completion_tokens > 0


def parse_under_its_old_name():
    parse = client.beta.chat.completions.parse
    completion = parse(model=MODEL, messages=ASK, response_format=Dog)
    assert isinstance(completion.choices[0].message.parsed, Dog)


async def parse_asynchronously():
    async with AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY) as asynchronous:
        completion = await asynchronous.chat.completions.parse(
            model=MODEL, messages=ASK, response_format=Person
        )
    assert isinstance(completion.choices[0].message.parsed, Person)


def parse_arguments():
    completion = client.chat.completions.parse(
        model=MODEL, messages=ASK, tools=[TOOL], tool_choice="required"
    )
    (call,) = completion.choices[0].message.tool_calls
    assert completion.choices[0].finish_reason == "tool_calls"
    assert isinstance(call.function.parsed_arguments, get_weather)


def parse_a_call_or_an_answer():
    completion = client.chat.completions.parse(
        model=MODEL, messages=ASK, tools=[TOOL], response_format=Dog
    )
    message = completion.choices[0].message
    for call in message.tool_calls or []:
        assert isinstance(call.function.parsed_arguments, get_weather)
    assert message.tool_calls or isinstance(message.parsed, Dog)


def parse_nothing_that_was_cut_off():
    try:
        client.chat.completions.parse(
            model=MODEL, messages=ASK, response_format=Person, max_completion_tokens=3
        )
    except openai.LengthFinishReasonError:
        return
    raise AssertionError("three tokens were enough")


def stream_an_answer():
    seen = {"delta": "", "done": None}
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, response_format=Person, stream_options={"include_usage": True}
    ) as stream:
        for event in stream:
            if event.type == "content.delta":
                seen["delta"] += event.delta
            if event.type == "content.done":
                seen["done"] = event.parsed
        final = stream.get_final_completion()
    assert isinstance(seen["done"], Person)
    assert final.choices[0].message.parsed == seen["done"]
    assert Person.model_validate_json(seen["delta"]) == seen["done"]
    assert final.usage.completion_tokens > 0


def stream_arguments():
    pieces = ""
    done = None
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    ) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                pieces += event.arguments_delta
            if event.type == "tool_calls.function.arguments.done":
                done = event.parsed_arguments
    assert isinstance(done, get_weather)
    assert get_weather.model_validate_json(pieces) == done


def call_a_function_and_go_on():
    messages = [*ASK]
    named = {"type": "function", "function": {"name": "get_weather"}}
    first = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[LOOSE], tool_choice=named
    )
    message = first.choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments).keys() >= {"city"}
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "22 degrees"}]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=[LOOSE])
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content


def answer_with_any_object():
    completion = client.chat.completions.create(
        model=MODEL, messages=ASK, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(completion.choices[0].message.content), dict)


def call_nothing_when_told_so():
    completion = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[LOOSE], tool_choice="none"
    )
    assert not completion.choices[0].message.tool_calls


if __name__ == "__main__":
    run(sys.modules[__name__])
