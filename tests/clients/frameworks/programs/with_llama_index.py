"""LlamaIndex: structured prediction by functions and by schemas, and functions that are called."""

import sys

from cases import API_KEY, BASE_URL, MODEL, run
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

OPTIONS = {"model": MODEL, "api_base": BASE_URL, "api_key": API_KEY, "context_window": 8192}
calling = OpenAILike(**OPTIONS, is_chat_model=True, is_function_calling_model=True)
shaping = OpenAILike(**OPTIONS, is_chat_model=True, should_use_structured_outputs=True)
PROMPT = PromptTemplate("Tell me of {name}.")
ASK = [ChatMessage(role="user", content="How warm is it in Paris?")]


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


def _get_weather(city: str) -> str:
    """Look the weather of a city up."""
    return f"22 degrees in {city}"


weather = FunctionTool.from_defaults(_get_weather, name="get_weather")


def structured_predict_by_function():
    assert isinstance(calling.structured_predict(Person, PROMPT, name="Ann"), Person)


def structured_predict_by_schema():
    assert isinstance(shaping.structured_predict(Person, PROMPT, name="Ann"), Person)


async def structured_predict_asynchronously():
    assert isinstance(await shaping.astructured_predict(Person, PROMPT, name="Ann"), Person)


def as_structured_llm():
    answer = calling.as_structured_llm(Person).chat(ASK)
    assert isinstance(answer.raw, Person)


def as_structured_llm_by_schema():
    answer = shaping.as_structured_llm(Person).complete("Tell me of Ann.")
    assert isinstance(answer.raw, Person)


def streamed_structured_predict():
    """By function it always leaves the model free to call it or not."""
    *_, last = shaping.stream_structured_predict(Person, PROMPT, name="Ann")
    assert isinstance(last, Person)


def call_that_is_required():
    answer = calling.chat_with_tools([weather], chat_history=ASK, tool_required=True)
    calls = calling.get_tool_calls_from_response(answer)
    assert calls[0].tool_name == "get_weather"
    assert calls[0].tool_kwargs.keys() == {"city"}


def call_that_is_named():
    answer = calling.chat_with_tools([weather], chat_history=ASK, tool_choice="get_weather")
    assert calling.get_tool_calls_from_response(answer)


def streamed_call():
    *_, last = calling.stream_chat_with_tools([weather], chat_history=ASK, tool_required=True)
    assert calling.get_tool_calls_from_response(last)[0].tool_kwargs.keys() == {"city"}


def predict_and_call():
    answer = calling.predict_and_call([weather], chat_history=ASK, tool_required=True)
    assert "22 degrees in" in str(answer)


def result_and_answer():
    called = calling.chat_with_tools([weather], chat_history=ASK, tool_required=True)
    results = [
        ChatMessage(
            role="tool",
            content=str(weather(**call.tool_kwargs)),
            additional_kwargs={"tool_call_id": call.tool_id},
        )
        for call in calling.get_tool_calls_from_response(called)
    ]
    answer = calling.chat_with_tools([weather], chat_history=[*ASK, called.message, *results])
    assert answer.message.content


async def agent():
    answer = await FunctionAgent(tools=[weather], llm=calling).run("How warm is it in Paris?")
    assert str(answer)


if __name__ == "__main__":
    run(sys.modules[__name__])
