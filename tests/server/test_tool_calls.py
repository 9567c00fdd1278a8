"""Tiny models with the templates of Qwen3 and Llama 3.1 call tools: forced, free, in rounds."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator

from saccade_server.config import engine_config
from saccade_server.inprocess import open_server

CHAT_STYLES = ("qwen3", "llama3")

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "London"]},
        "days": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "note": {"type": "string", "maxLength": 12},
    },
    "required": ["city", "days", "note"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": f"Does {name}.", "parameters": parameters},
    }
    for name, parameters in (("get_weather", WEATHER), ("now", None))
]
USER = {"role": "user", "content": "What is the weather in Paris?"}
NAMED = {"type": "function", "function": {"name": "get_weather"}}

Check = Callable[[httpx2.AsyncClient], Awaitable[None]]


def serve(folder: str, check: Check) -> None:
    async def main() -> None:
        config = engine_config(folder, device="cpu", dtype="float32", cache_tokens=16384)
        async with open_server(config, "m") as client:
            await check(client)

    asyncio.run(main())


async def ask(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"messages": [USER], "temperature": 0, "max_tokens": 300, "tools": TOOLS, **fields}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["choices"][0])


async def streamed(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    """The same as :func:`ask`, put together from a stream."""
    body = {"messages": [USER], "temperature": 0, "max_tokens": 300, "tools": TOOLS, "stream": True}
    answer = await client.post("/v1/chat/completions", json=body | fields)
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
    content, calls, reason = "", [], None
    for (choice,) in (event["choices"] for event in events):
        content += choice["delta"].get("content") or ""
        for call in choice["delta"].get("tool_calls", ()):
            if "id" in call:
                calls.append({key: call[key] for key in ("id", "type", "function")})
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        reason = choice["finish_reason"] or reason
    message = {"role": "assistant", "content": content or None, "tool_calls": calls}
    return {"message": message, "finish_reason": reason}


def called(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    assert choice["finish_reason"] == "tool_calls"
    made = [call["function"] for call in choice["message"]["tool_calls"]]
    return [(call["name"], json.loads(call["arguments"])) for call in made]


def check_arguments(name: str, arguments: Any) -> None:
    if name == "now":
        assert arguments == {}
    else:
        Draft202012Validator(WEATHER).validate(arguments)


@pytest.mark.parametrize("style", CHAT_STYLES)
def test_forced_calls_follow_their_schemas_and_go_on(chat_folder: Any, style: str) -> None:
    async def check(client: httpx2.AsyncClient) -> None:
        for fields in (
            {"tool_choice": "required"},
            {"tool_choice": NAMED},
            {"tool_choice": "required", "temperature": 1, "seed": 3},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ):
            choice = await ask(client, **fields)
            calls = called(choice)
            assert choice["message"]["content"] is None
            for name, arguments in calls:
                check_arguments(name, arguments)
            if fields.get("tool_choice") == NAMED or "parallel_tool_calls" in fields:
                assert len(calls) == 1
            if fields.get("tool_choice") == NAMED:
                assert calls[0][0] == "get_weather"
            assert choice["structured_output"]["kind"] == "tools"
            assert choice["structured_output"]["complete"]
            again = await streamed(client, **fields)
            assert called(again) == calls
            assert again["message"]["content"] is None
        await _goes_on(client, await ask(client, tool_choice=NAMED))

    serve(chat_folder(style), check)


async def _goes_on(client: httpx2.AsyncClient, choice: dict[str, Any]) -> None:
    """What was called stands in the next prompt, token by token as it was drawn, and a result."""
    (call,) = choice["message"]["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "warm"}
    body = {"messages": [USER, choice["message"], result], "tools": TOOLS}
    tokens = (await client.post("/tokenize", json=body)).json()["tokens"]
    text = (await client.post("/detokenize", json={"tokens": tokens})).json()["prompt"]
    assert json.dumps(json.loads(call["function"]["arguments"])) in text
    assert "warm" in text
    begun = {"messages": [USER], "tools": TOOLS}
    before = (await client.post("/tokenize", json=begun)).json()["tokens"]
    shared = len(before) - 1  # what stands behind the last of them may melt into it
    assert tokens[:shared] == before[:shared]
    last = await ask(client, messages=body["messages"], tool_choice="none")
    assert last["finish_reason"] == "stop"
    assert "tool_calls" not in last["message"]


def test_qwen_calls_when_it_likes(chat_folder: Any) -> None:
    async def check(client: httpx2.AsyncClient) -> None:
        strict = [
            {"type": "function", "function": tool["function"] | {"strict": True}} for tool in TOOLS
        ]
        choice = await ask(client, tools=strict)
        for name, arguments in called(choice):
            check_arguments(name, arguments)
        assert called(await streamed(client, tools=strict)) == called(choice)
        one = await ask(client, tools=strict, parallel_tool_calls=False)
        assert len(called(one)) == 1

    serve(chat_folder("qwen3", "<tool_call>"), check)


def test_calls_behind_reasoning(chat_folder: Any) -> None:
    async def check(client: httpx2.AsyncClient) -> None:
        for fields in ({"tool_choice": "required"}, {"tool_choice": NAMED, "temperature": 1}):
            choice = await ask(client, **fields)
            assert choice["message"]["reasoning_content"]
            for name, arguments in called(choice):
                check_arguments(name, arguments)
            assert choice["message"]["content"] is None

    serve(chat_folder("qwen3", "<think>", "<tool_call>"), check)


def test_markers_that_are_special_tokens(chat_folder: Any, tmp_path: Path) -> None:
    """As some models have them: without text elsewhere, and drawn as the single tokens they are."""
    shutil.copytree(chat_folder("qwen3", "<tool_call>"), tmp_path, dirs_exist_ok=True)
    for name, kept in (("tokenizer.json", "added_tokens"), ("tokenizer_config.json", "")):
        path = tmp_path / name
        described = json.loads(path.read_text())
        entries = described[kept] if kept else described.get("added_tokens_decoder", {}).values()
        for entry in entries:
            entry["special"] |= "tool_call" in entry["content"]
        path.write_text(json.dumps(described))
    strict = [
        {"type": "function", "function": tool["function"] | {"strict": True}} for tool in TOOLS
    ]

    async def check(client: httpx2.AsyncClient) -> None:
        for fields in ({"tool_choice": "required"}, {"tools": strict}, {}):
            choice = await ask(client, logprobs=True, **fields)
            drawn = [entry["token"] for entry in choice["logprobs"]["content"]]
            assert drawn[0] == "<tool_call>"
            if fields:
                assert {name for name, _ in called(choice)} <= {"now", "get_weather"}
                assert "tool_call" not in (choice["message"]["content"] or "")

    serve(str(tmp_path), check)


@pytest.mark.parametrize("style", CHAT_STYLES)
def test_free_answers_have_no_grammar(chat_folder: Any, style: str) -> None:
    async def check(client: httpx2.AsyncClient) -> None:
        choice = await ask(client)
        assert "structured_output" not in choice
        assert choice["finish_reason"] == "stop"
        assert choice["message"]["content"]
        strict = {"name": "now", "strict": True}
        held = await ask(client, tools=[{"type": "function", "function": strict}])
        assert held["structured_output"]["kind"] == "tools"
        assert held["finish_reason"] in ("stop", "tool_calls")

    serve(chat_folder(style), check)


@pytest.mark.parametrize("style", CHAT_STYLES)
def test_interventions_act_while_tools_are_called(chat_folder: Any, style: str) -> None:
    entry = {"method": "pasta", "highlight": ["weather in Paris"], "layers": [0, 1], "heads": "all"}

    async def check(client: httpx2.AsyncClient) -> None:
        body = {"messages": [USER], "tools": TOOLS, "interventions": [entry]}
        valid = await client.post("/v1/interventions/validate", json=body)
        assert valid.status_code == 200, valid.text
        fields = {"tool_choice": "required", "max_tokens": 300, "temperature": 0}
        answer = (await client.post("/v1/chat/completions", json=body | fields)).json()
        (applied,) = answer["interventions_applied"]
        assert applied["status"] == "applied"
        for name, arguments in called(answer["choices"][0]):
            check_arguments(name, arguments)

    serve(chat_folder(style), check)
