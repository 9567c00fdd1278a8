"""What mypy was shown of the SDK runs as well."""

import asyncio
import json

import httpx2

import saccade_client as sdk
from saccade_testing import typed_client


def serve(request):
    """Answer with whatever the form of a request allows."""
    if "tokenize" in request.url.path:
        return httpx2.Response(200, json={"count": 1, "tokens": [1], "prompt": "x"})
    body = json.loads(request.content)
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    text = '[{"size": 3}]' if schema.get("type") == "array" else '{"size": 3}'
    if body.get("stream"):
        event = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
        data = f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n"
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, stream=httpx2.ByteStream(data.encode()), headers=headers)
    function = {"name": "look", "arguments": '{"size": 2}'}
    calls = [{"id": "a", "type": "function", "function": function}]
    message = {"content": text, "tool_calls": calls if body.get("tool_choice") else None}
    return httpx2.Response(200, json={"choices": [{"message": message}]})


def with_a_model(request):
    if request.url.path == "/v1/models":
        return httpx2.Response(200, json={"data": [{"id": "m"}]})
    return serve(request)


def test_synchronously():
    with sdk.Saccade(transport=httpx2.MockTransport(with_a_model)) as client:
        assert typed_client.synchronous(client).parsed == typed_client.Thing(size=3)
        assert typed_client.turns(client).content == '{"size": 3}'


def test_asynchronously():
    async def run():
        transport = httpx2.MockTransport(with_a_model)
        async with sdk.AsyncSaccade(transport=transport) as client:
            return await typed_client.asynchronous(client)

    assert asyncio.run(run()).parsed == typed_client.Thing(size=3)
