"""Models that think, served: grammars begin behind the reasoning, and budgets count both."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from saccade_server.cli import app
from saccade_server.config import engine_config
from saccade_server.evaluation.asking import Asker
from saccade_server.inprocess import open_server

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["city", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "who", "schema": SCHEMA}}
THINKERS = [("qwen3", "<think>"), ("qwen3-thinking",)]

Check = Callable[[httpx2.AsyncClient], Awaitable[None]]


def serve(folder: str, check: Check) -> None:
    async def main() -> None:
        config = engine_config(folder, device="cpu", dtype="float32", cache_tokens=8192)
        async with open_server(config, "m") as client:
            await check(client)

    asyncio.run(main())


async def ask(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {
        "messages": [{"role": "user", "content": "Where does Alice live?"}],
        "temperature": 0,
        "max_tokens": 200,
        **fields,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def streamed(client: httpx2.AsyncClient, **fields: Any) -> tuple[dict[str, str], Any]:
    """Texts of an answer's deltas put together, and the usage."""
    body = {
        "messages": [{"role": "user", "content": "Where does Alice live?"}],
        "temperature": 0,
        "max_tokens": 200,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
    said = {"content": "", "reasoning_content": ""}
    for event in events:
        for choice in event["choices"]:
            for name in said:
                said[name] += choice["delta"].get(name, "")
    return said, events[-1]["usage"]


def reasoning_of(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["completion_tokens_details"]["reasoning_tokens"])


@pytest.mark.parametrize("style", THINKERS)
def test_an_answer_is_thought_and_said(chat_folder: Any, style: tuple[str, ...]) -> None:
    async def check(client: httpx2.AsyncClient) -> None:
        answer = await ask(client, logprobs=True)
        (choice,) = answer["choices"]
        said = choice["message"]
        assert said["content"]
        assert said["reasoning_content"]
        assert not {"<think>", "</think>"} & {*said["content"].split()}
        tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
        assert reasoning_of(answer) == tokens.index("</think>") + 1
        assert answer["usage"]["completion_tokens"] == len(tokens) + 1  # and the end
        told = await streamed(client)
        assert told == ({name: said[name] for name in told[0]}, answer["usage"])
        many = await ask(client, n=3)
        assert reasoning_of(many) == 3 * reasoning_of(answer)
        whole = await ask(client, separate_reasoning=False)
        (text,) = [choice["message"]["content"] for choice in whole["choices"]]
        assert text == "".join(tokens)
        await _comes_back(client, said, text, begun=style[0] == "qwen3-thinking")

    serve(chat_folder(*style), check)


async def _comes_back(
    client: httpx2.AsyncClient, said: dict[str, Any], text: str, begun: bool
) -> None:
    """An answer that is sent back stands in the prompt as the model has drawn it."""
    asked = {"role": "user", "content": "Where does Alice live?"}
    histories = [
        {"messages": [asked]},
        {
            "messages": [asked, said],
            "continue_final_message": True,
        },
    ]
    found = [(await client.post("/tokenize", json=body)).json()["tokens"] for body in histories]
    shown = (await client.post("/detokenize", json={"tokens": found[1]})).json()["prompt"]
    opened = "<think>\n" if begun else ""
    bare = (opened + text).replace("\n", "").replace("<think>", "").strip()
    assert shown.replace("\n", "").replace("<think>", "").endswith(bare)
    assert found[1][: len(found[0]) - 2 * begun] == found[0][: len(found[0]) - 2 * begun]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("style", [*THINKERS, ("qwen3",)])
def test_a_grammar_begins_behind_the_reasoning(
    chat_folder: Any, style: tuple[str, ...], temperature: float
) -> None:
    """A model that does not begin to think is held from its first token on."""

    async def check(client: httpx2.AsyncClient) -> None:
        fields = {"response_format": FORMAT, "temperature": temperature, "seed": 5}
        fields |= {"logprobs": True}
        answer = await ask(client, n=4, **fields)
        free = await ask(client, temperature=temperature, seed=5, n=4)
        for choice, other in zip(answer["choices"], free["choices"], strict=True):
            said = choice["message"]
            value = json.loads(said["content"])
            assert {*value} == {"city", "age"}
            assert choice["finish_reason"] == "stop"
            receipt = choice["structured_output"]
            assert receipt["complete"]
            if temperature == 0 or style == ("qwen3",):
                thought = other["message"].get("reasoning_content")
                assert said.get("reasoning_content") == thought
            thinks = style != ("qwen3",)
            assert ("reasoning_content" in said) == thinks
            tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
            held = tokens[tokens.index("</think>") + 1 :] if thinks else tokens
            lines = len([token for token in held if not token.strip("\n")])  # the template's
            assert receipt["constrained_tokens"] == len(held) - lines

    serve(chat_folder(*style), check)


@pytest.mark.parametrize("style", THINKERS)
def test_a_budget_counts_both(chat_folder: Any, style: tuple[str, ...]) -> None:
    async def check(client: httpx2.AsyncClient) -> None:
        for fields in ({}, {"response_format": FORMAT}):
            whole = await ask(client, **fields)
            thought = reasoning_of(whole)
            total = whole["usage"]["completion_tokens"]
            for most in (1, thought - 1, thought, thought + 1, total):
                answer = await ask(client, max_tokens=most, **fields)
                (choice,) = answer["choices"]
                assert answer["usage"]["completion_tokens"] == most
                assert reasoning_of(answer) == min(most, thought)
                assert choice["finish_reason"] == ("stop" if most == total else "length")
                said, wanted = choice["message"], whole["choices"][0]["message"]
                if most <= thought:
                    assert not said["content"]
                begun = said.get("reasoning_content", "")
                assert wanted["reasoning_content"].startswith(begun)
                assert (begun == wanted["reasoning_content"]) == (most >= thought - 1)
                if fields:
                    assert choice["structured_output"]["complete"] == (most == total)

    serve(chat_folder(*style), check)


def test_a_model_told_not_to_think(chat_folder: Any) -> None:
    """Its template closes the reasoning in the prompt: a grammar holds at once."""

    async def check(client: httpx2.AsyncClient) -> None:
        for off in ({"enable_thinking": False}, {"thinking": False}, {"reasoning_effort": "none"}):
            answer = await ask(client, response_format=FORMAT, **off)
            (choice,) = answer["choices"]
            assert "reasoning_content" not in choice["message"]
            json.loads(choice["message"]["content"])
            assert reasoning_of(answer) == 0

    serve(chat_folder("qwen3", "<think>"), check)


def test_a_model_that_always_thinks_cannot_be_told(chat_folder: Any) -> None:
    async def check(client: httpx2.AsyncClient) -> None:
        body = {"messages": [{"role": "user", "content": "Hi"}], "thinking": {"type": "disabled"}}
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "thinking"

    serve(chat_folder("qwen3-thinking"), check)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call_is_told_from_the_reasoning_before_it(chat_folder: Any, choice: str) -> None:
    async def check(client: httpx2.AsyncClient) -> None:
        fields = {"tools": [WEATHER], "tool_choice": choice}
        answer = await ask(client, **fields, logprobs=True)
        (found,) = answer["choices"]
        said = found["message"]
        assert found["finish_reason"] == "tool_calls"
        assert said["reasoning_content"]
        spoken = said["content"] or ""
        assert spoken == "" or choice == "auto"
        (call,) = said["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        json.loads(call["function"]["arguments"])
        tokens = [entry["token"] for entry in found["logprobs"]["content"]]
        assert reasoning_of(answer) == tokens.index("</think>") + 1
        told, usage = await streamed(client, **fields)
        assert told == {"content": spoken, "reasoning_content": said["reasoning_content"]}
        assert usage["completion_tokens_details"] == answer["usage"]["completion_tokens_details"]
        hidden = await ask(client, **fields, include_reasoning=False)
        assert "reasoning_content" not in hidden["choices"][0]["message"]
        assert hidden["choices"][0]["message"]["tool_calls"][0]["function"] == call["function"]
        assert reasoning_of(hidden) == reasoning_of(answer)
        left = await ask(client, **fields, separate_reasoning=False)
        content = left["choices"][0]["message"]["content"]
        assert content.startswith("<think>")
        before, _, behind = content.partition("</think>")
        assert said["reasoning_content"] in before
        assert behind.strip("\n") == spoken
        result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
        asked = [{"role": "user", "content": "Where does Alice live?"}, said, result]
        assert (await ask(client, messages=asked, **fields))["choices"]

    serve(chat_folder("qwen3", "<think>", "<tool_call>"), check)


def test_whoever_judges_sees_what_is_said(chat_folder: Any) -> None:
    asked = [{"role": "user", "content": "Where does Alice live?"}]

    async def check(client: httpx2.AsyncClient) -> None:
        asker = await Asker.connect(client, 1)
        said = (await ask(client))["choices"][0]["message"]["content"]
        sampling = {"temperature": 0, "max_tokens": 200}
        assert (await asker.ask(asked, (), sampling)).text == said
        cut = await asker.ask(asked, (), sampling | {"max_tokens": 2})
        assert (cut.text, cut.tokens) == ("", 2)
        likely = await asker.likely_tokens(asked, (), 20)
        assert max(likely, key=lambda token: likely[token]) != "<think>"

    serve(chat_folder("qwen3", "<think>"), check)


def test_one_answer_from_the_command_line(chat_folder: Any) -> None:
    folder = chat_folder("qwen3", "<think>")
    command = ["generate", "--model", folder, "--prompt", "Where?", "--dtype", "float32"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    whole = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    said = whole["choices"][0]["message"]
    assert done.stdout == f"{said['content']}\n"
    assert done.stderr.startswith(f"{said['reasoning_content']}\n")
