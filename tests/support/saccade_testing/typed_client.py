"""What a type checker makes of the SDK: mypy reads this file, and a test runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

from pydantic import BaseModel

from saccade_client import (
    AsyncSaccade,
    ChatChunk,
    ChatCompletion,
    Message,
    Parsed,
    Saccade,
    Tokens,
    ToolCall,
    tool,
)


class Thing(BaseModel):
    """A pydantic model."""

    size: int


@dataclass
class Pair:
    """A dataclass."""

    size: int


def look(size: int) -> str:
    """Look at something of this size."""
    return "=" * size


def synchronous(client: Saccade) -> Parsed[Thing]:
    """Objects have the type that was asked for."""
    answer = client.parse("x", Thing, temperature=0.0)
    assert_type(answer, Parsed[Thing])
    assert_type(answer.parsed, Thing)
    assert_type(answer.all_parsed, list[Thing])
    assert_type(client.parse("x", Pair).parsed, Pair)
    assert_type(client.parse("x", list[Pair]).parsed, list[Pair])
    with client.stream_parse("x", Thing) as stream:
        for chunk in stream:
            assert_type(chunk, ChatChunk)
        assert_type(stream.final.parsed, Thing)
    plain = client.chat("x", response_format=Thing, tools=[look, Thing, tool(look)])
    assert_type(plain, ChatCompletion)
    assert_type(plain.parse(Thing), Thing)
    assert_type(plain.choices[0].parse(Pair), Pair)
    assert_type(client.tokenize("x"), Tokens)
    assert_type(client.detokenize([1]), str)
    return answer


def turns(client: Saccade) -> Message:
    """An answer's message goes back among dicts."""
    answer = client.chat("x", tools=[look], tool_choice=look)
    messages: list[dict[str, Any] | Message] = [{"role": "user", "content": "x"}, answer.message]
    for call in answer.tool_calls:
        assert_type(call, ToolCall)
        assert_type(call.arguments, dict[str, Any])
        assert_type(call.parse(Thing), Thing)
        messages.append(call.reply(look(**call.arguments_for(look))))
    client.chat([{"role": "user", "content": "x"}, answer.message])
    return client.chat(messages).message


async def asynchronous(client: AsyncSaccade) -> Parsed[Thing]:
    """As the other form."""
    answer = await client.parse("x", Thing)
    assert_type(answer, Parsed[Thing])
    async with client.stream_parse("x", Pair) as stream:
        async for chunk in stream:
            assert_type(chunk, ChatChunk)
        assert_type(stream.final.parsed, Pair)
    assert_type(await client.tokenize(messages="x", tools=[look]), Tokens)
    return answer
