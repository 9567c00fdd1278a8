"""Tokens of texts and conversations, over a mock transport and over a socket."""

import httpx2
import pytest

import saccade_client as sdk
from saccade_testing.api.server import check_servers, start_server

TOKENS = {"count": 2, "max_model_len": 64, "tokens": [5, 6], "token_strs": ["a", "Ġb"]}


def count(place: str) -> int:
    """Count what is there."""
    return len(place)


def tokenized(request):
    return httpx2.Response(200, json=TOKENS, headers={"x-request-id": "r-1"})


def test_a_text_and_a_conversation(harness):
    found = harness.ask(
        tokenized,
        lambda client: client.tokenize(
            "a b", model="m", add_special_tokens=False, return_token_strs=True
        ),
    )
    assert (found.tokens, found.count, found.max_model_len) == ([5, 6], 2, 64)
    assert (found.token_strs, found.request_id) == (["a", "Ġb"], "r-1")
    harness.ask(
        tokenized,
        lambda client: client.tokenize(
            messages="a b", images="http://a/b", tools=[count], model="m",
            chat_template_kwargs={"mood": "dry"}, add_generation_prompt=False,
        ),
    )  # fmt: skip
    text, conversation = harness.bodies
    assert text == {
        "prompt": "a b", "model": "m", "add_special_tokens": False, "return_token_strs": True
    }  # fmt: skip
    assert conversation["tools"][0]["function"]["name"] == "count"
    assert [part["type"] for part in conversation["messages"][0]["content"]] == [
        "image_url", "text"
    ]  # fmt: skip
    assert conversation["add_generation_prompt"] is False
    assert {request.url.path for request in harness.requests} == {"/tokenize"}


def test_back_to_a_text(harness):
    text = harness.ask(
        lambda request: httpx2.Response(200, json={"prompt": "a b"}),
        lambda client: client.detokenize(range(2), model="m"),
    )
    assert text == "a b"
    assert harness.bodies == [{"tokens": [0, 1], "model": "m"}]
    assert harness.requests[0].url.path == "/detokenize"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "one of them"),
        ({"prompt": "a", "messages": "b"}, "one of them"),
        ({"prompt": "a", "images": "http://a/b"}, "need messages"),
        ({"prompt": object()}, "prompt is object"),
    ],
)
def test_mistakes(harness, given, reason):
    with pytest.raises(sdk.InvalidInput, match=reason):
        harness.ask(tokenized, lambda client: client.tokenize(**given, model="m"))
    with pytest.raises(sdk.InvalidInput, match="list of numbers"):
        harness.ask(tokenized, lambda client: client.detokenize("a b", model="m"))
    with pytest.raises(TypeError, match="add_special_tokens"):
        harness.ask(tokenized, lambda client: client.tokenize("a", add_special_token=True))
    assert harness.requests == []


@pytest.mark.parametrize("content", [b"{}", b"<html>", b'{"count": 1, "tokens": ["x"]}'])
def test_an_unreadable_answer(harness, content):
    reply = lambda request: httpx2.Response(200, content=content)
    with pytest.raises(sdk.APIError) as caught:
        harness.ask(reply, lambda client: client.tokenize("a", model="m"))
    assert caught.value.code == "invalid_response"


@pytest.fixture(scope="module")
def running():
    server = start_server(served_model_name="tiny")
    yield server
    server.stop()
    check_servers()


def test_with_the_server(running):
    with sdk.Saccade(running.url) as client:
        found = client.tokenize("Hi", return_token_strs=True)
        assert (found.count, len(found.token_strs)) == (len(found.tokens), len(found.tokens))
        special = client.tokenize("Hi", add_special_tokens=False)
        client.complete("Hi", add_special_tokens=False)
        assert list(running.engine.requests[-1].tokens) == special.tokens
        assert client.detokenize([72, 105]) == "Hi"
        chat = client.tokenize(messages=[{"role": "user", "content": "Hi"}])
        assert chat.count > found.count
        client.chat("Hi")
        assert list(running.engine.requests[-1].tokens) == chat.tokens
        with pytest.raises(sdk.BadRequest) as caught:
            client.detokenize([-1])
        assert "tokens" in caught.value.param
