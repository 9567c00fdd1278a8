"""What agents' frameworks send, as they sent it once, and OpenAI's own client, which is here.

``make test-frameworks`` runs the frameworks themselves; this needs none of them.
"""

import json
from pathlib import Path

import httpx2
import jsonschema
import pytest

from saccade_testing.frameworks import Framework

REQUESTS = {
    f"{path.stem}-{number}": json.loads(line)
    for path in sorted(Path(__file__).parent.glob("requests/*.jsonl"))
    for number, line in enumerate(path.read_text().splitlines(), start=1)
}

# The first waits for a server and a whole program.
pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.mark.parametrize("case", Framework("openai").cases)
def test_openai(told, model, case):
    fault = told("openai", model)[case]
    assert fault is None, fault


def answered(url, body):
    """The message, whole, and how it ended."""
    if not body.get("stream"):
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        return choice["message"], choice["finish_reason"]
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        *lines, last = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert last == "[DONE]"
    return put_together([json.loads(line) for line in lines])


def put_together(chunks):
    """The message of a stream, in the way of OpenAI's own client."""
    message = {"content": "", "tool_calls": []}
    end = None
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        delta = choice["delta"]
        message["content"] += delta.get("content") or ""
        for piece in delta.get("tool_calls") or []:
            if piece["index"] == len(message["tool_calls"]):
                assert piece["id"]
                assert piece["type"] == "function"
                call = {"name": piece["function"]["name"], "arguments": ""}
                message["tool_calls"].append({"id": piece["id"], "function": call})
            call = message["tool_calls"][piece["index"]]["function"]
            call["arguments"] += piece["function"].get("arguments") or ""
        end = choice["finish_reason"] or end
    return message, end


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_answered_in_its_form(model, name):
    body = REQUESTS[name]
    message, end = answered(model, body)
    calls = message.get("tool_calls") or []
    assert end == ("tool_calls" if calls else "stop")
    tools = {tool["function"]["name"]: tool["function"] for tool in body.get("tools") or []}
    choice = body.get("tool_choice", "auto")
    if choice == "none":
        assert not calls
    if choice == "required" or isinstance(choice, dict):
        assert calls
        assert not message["content"]
    if isinstance(choice, dict):
        assert {call["function"]["name"] for call in calls} == {choice["function"]["name"]}
    if body.get("parallel_tool_calls") is False:
        assert len(calls) <= 1
    for call in calls:
        tool = tools[call["function"]["name"]]
        if choice != "auto" or tool.get("strict"):
            jsonschema.validate(json.loads(call["function"]["arguments"]), tool["parameters"])
    form = body.get("response_format") or {"type": "text"}
    if form["type"] != "text" and not calls:
        schema = form["json_schema"]["schema"] if "json_schema" in form else {"type": "object"}
        jsonschema.validate(json.loads(message["content"]), schema)
