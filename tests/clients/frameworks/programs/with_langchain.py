"""LangChain: structured output by its three methods, and bound tools."""

import sys
from typing import Annotated, Literal, TypedDict

from cases import API_KEY, BASE_URL, MODEL, run
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

llm = ChatOpenAI(model=MODEL, base_url=BASE_URL, api_key=API_KEY)
ASK = "Tell me of Ann. Answer in JSON."


class Person(BaseModel):
    """Somebody."""

    name: str = Field(description="without a title")
    age: int
    mood: Literal["glad", "sad"] | None = None


class Town(TypedDict):
    """Some town."""

    name: Annotated[str, ..., "in full"]
    people: int


@tool("get_weather")
def _get_weather(city: str) -> str:
    """Look the weather of a city up."""
    return f"22 degrees in {city}"


@tool("get_time")
def _get_time(zone: str) -> str:
    """Look the time up."""
    return f"noon in {zone}"


def json_schema():
    assert isinstance(llm.with_structured_output(Person).invoke(ASK), Person)


def json_schema_strict():
    structured = llm.with_structured_output(Town, method="json_schema", strict=True)
    assert structured.invoke(ASK).keys() == {"name", "people"}


def function_calling():
    structured = llm.with_structured_output(Person, method="function_calling")
    assert isinstance(structured.invoke(ASK), Person)


def function_calling_strict():
    structured = llm.with_structured_output(Town, method="function_calling", strict=True)
    assert structured.invoke(ASK).keys() == {"name", "people"}


def json_mode():
    assert isinstance(llm.with_structured_output(None, method="json_mode").invoke(ASK), dict)


def raw_beside_it():
    structured = llm.with_structured_output(Person, method="json_schema", include_raw=True)
    found = structured.invoke(ASK)
    assert found["parsing_error"] is None
    assert isinstance(found["parsed"], Person)
    assert found["raw"].usage_metadata["output_tokens"] > 0


def streamed_json_schema():
    *_, last = llm.with_structured_output(Person, method="json_schema").stream(ASK)
    assert isinstance(last, Person)


def streamed_function_calling():
    *_, last = llm.with_structured_output(Person, method="function_calling").stream(ASK)
    assert isinstance(last, Person)


async def asynchronous():
    assert isinstance(await llm.with_structured_output(Person).ainvoke(ASK), Person)


def tools_auto():
    answer = llm.bind_tools([_get_weather, _get_time]).invoke("How warm is it?")
    assert answer.content or answer.tool_calls


def tools_auto_strict():
    answer = llm.bind_tools([_get_weather, _get_time], strict=True).invoke("How warm is it?")
    assert answer.content or answer.tool_calls
    assert all(len(call["args"]) == 1 for call in answer.tool_calls)
    assert not answer.invalid_tool_calls


def tools_any():
    answer = llm.bind_tools([_get_weather, _get_time], tool_choice="any").invoke("How warm is it?")
    assert {call["name"] for call in answer.tool_calls} <= {"get_weather", "get_time"}
    assert answer.tool_calls
    assert not answer.invalid_tool_calls


def tool_by_name():
    bound = llm.bind_tools([_get_weather, _get_time], tool_choice="get_time")
    (call,) = bound.invoke("How late is it?").tool_calls
    assert call["name"] == "get_time"
    assert call["args"].keys() == {"zone"}


def streamed_calls():
    bound = llm.bind_tools([_get_weather], tool_choice="any", parallel_tool_calls=False)
    whole = None
    pieces = 0
    for chunk in bound.stream("How warm is it?"):
        pieces += len(chunk.tool_call_chunks)
        whole = chunk if whole is None else whole + chunk
    assert pieces > 1
    (call,) = whole.tool_calls
    assert call["name"] == "get_weather"
    assert call["args"].keys() == {"city"}


def result_and_answer():
    messages = [HumanMessage("How warm is it?")]
    called = llm.bind_tools([_get_weather], tool_choice="any").invoke(messages)
    messages.append(called)
    messages += [_get_weather.invoke(call) for call in called.tool_calls[:1]]
    messages += [ToolMessage("22", tool_call_id=call["id"]) for call in called.tool_calls[1:]]
    assert llm.bind_tools([_get_weather]).invoke(messages).content


if __name__ == "__main__":
    run(sys.modules[__name__])
