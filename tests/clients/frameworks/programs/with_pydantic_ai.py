"""Pydantic AI: agents with functions, and structured output in its three modes."""

import sys

from cases import API_KEY, BASE_URL, MODEL, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=API_KEY))


class Person(BaseModel):
    name: str
    age: int


class Loose(BaseModel):
    """Any object is one: in the prompted mode the names are the model's."""

    name: object = None


def _weather(agent, calls):
    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Look the weather of a city up."""
        calls.append(city)
        return "22 degrees"


def text():
    assert Agent(model, instructions="Be brief.").run_sync("Hi").output


def output_by_tool():
    agent = Agent(model, output_type=ToolOutput(Person))
    assert isinstance(agent.run_sync("Who is it?").output, Person)


def output_by_schema():
    agent = Agent(model, output_type=NativeOutput(Person))
    assert isinstance(agent.run_sync("Who is it?").output, Person)


def output_by_prompt():
    agent = Agent(model, output_type=PromptedOutput(Loose))
    assert isinstance(agent.run_sync("Who is it?").output, Loose)


def output_of_several_types():
    agent = Agent(model, output_type=[Person, Loose])
    assert isinstance(agent.run_sync("Who is it?").output, Person | Loose)


def function_then_output_by_tool():
    calls = []
    agent = Agent(model, output_type=Person)
    _weather(agent, calls)
    result = agent.run_sync("How warm is it in Paris?")
    assert isinstance(result.output, Person)
    assert len(calls) == 1
    parts = [part for message in result.all_messages() for part in message.parts]
    assert sum(isinstance(part, ToolCallPart) for part in parts) == 2
    assert any(isinstance(part, ToolReturnPart) and part.content for part in parts)


def function_then_output_by_schema():
    agent = Agent(model, output_type=NativeOutput(Person))
    _weather(agent, [])
    assert isinstance(agent.run_sync("How warm is it in Paris?").output, Person)


def function_then_text():
    agent = Agent(model)
    _weather(agent, [])
    assert agent.run_sync("How warm is it in Paris?").output


def conversation_goes_on():
    agent = Agent(model, output_type=Person)
    first = agent.run_sync("Who is it?")
    second = agent.run_sync("And who else?", message_history=first.all_messages())
    assert isinstance(second.output, Person)


async def streamed_output():
    agent = Agent(model, output_type=Person)
    async with agent.run_stream("Who is it?") as result:
        partial = [output async for output in result.stream_output(debounce_by=None)]
    assert isinstance(partial[-1], Person)


async def streamed_text():
    async with Agent(model).run_stream("Hi") as result:
        assert "".join([piece async for piece in result.stream_text(delta=True)])


if __name__ == "__main__":
    run(sys.modules[__name__])
