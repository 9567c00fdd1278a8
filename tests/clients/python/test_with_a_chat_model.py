"""Reasoning against a real server with a tiny model of Qwen3's template."""

import pytest

import saccade_client as sdk
from saccade_testing.launch import Served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(chat_folder, tmp_path_factory: pytest.TempPathFactory):
    """Left alone it thinks first."""
    folder = chat_folder("qwen3", "<think>")
    log = tmp_path_factory.mktemp("served") / "log"
    server = Served(log, folder, "--served-model-name", "tiny", "--no-self-test")
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()


@pytest.fixture
def client(running):
    with sdk.Saccade(running.url) as client:
        yield client


def test_reasoning(client):
    answer = client.chat("Hello?", temperature=0, max_tokens=200)
    assert answer.reasoning.strip()
    assert "<think>" not in answer.text + answer.reasoning
    assert 0 < answer.usage.reasoning_tokens < answer.usage.completion_tokens
    with client.stream_chat("Hello?", temperature=0, max_tokens=200) as stream:
        pieces = [chunk.reasoning for chunk in stream]
    assert "".join(pieces) == stream.final.reasoning == answer.reasoning
    assert stream.final.message == answer.message
    assert stream.final.usage.reasoning_tokens == answer.usage.reasoning_tokens
    silent = client.chat("Hello?", temperature=0, max_tokens=200, include_reasoning=False)
    assert (silent.reasoning, silent.text) == ("", answer.text)
    (model,) = client.models()
    assert model.reasoning_markers == ["<think>", "</think>"]
