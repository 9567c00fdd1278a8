"""The key that turns of one conversation share: as defined, and sent with every request."""

import hashlib
import json
from pathlib import Path

import httpx2
import pytest

from saccade_client.affinity import affinity_key

VECTORS = json.loads((Path(__file__).parents[2] / "support/affinity.json").read_text("utf-8"))
BEGUN = [{"role": "user", "content": "Is there a dog?"}]
LATER = [*BEGUN, {"role": "assistant", "content": "No."}, {"role": "user", "content": "A cat?"}]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["about"])
def test_keys_are_as_defined(vector):
    found = affinity_key(vector["body"])
    assert found == vector["key"]
    if found is not None:
        assert json.loads(vector["canonical"]).keys() == {"head", "model"}
        assert found == hashlib.sha256(vector["canonical"].encode()).hexdigest()[:16]


def test_turns_of_a_conversation_carry_one_key_and_others_another(harness, answer):
    def handler(request):
        return httpx2.Response(200, json=answer())

    for prompt in (BEGUN, LATER, "Is there a dog?", "Is there a cow?"):
        harness.ask(handler, lambda client, prompt=prompt: client.chat(prompt, model="m+p"))
    sent = [request.headers["X-Saccade-Affinity"] for request in harness.requests]
    assert sent[0] == sent[1] == sent[2] != sent[3]
    assert sent[0] == affinity_key({"model": "m", "messages": BEGUN})


def test_a_stream_carries_the_key_of_what_it_asks(harness, sse, pieces):
    def handler(request):
        return httpx2.Response(
            200, headers={"content-type": "text/event-stream"}, stream=pieces(sse("[DONE]"))
        )

    harness.stream(handler, lambda client: client.stream_complete("Once", model="m"))
    (request,) = harness.requests
    assert request.headers["X-Saccade-Affinity"] == affinity_key({"model": "m", "prompt": "Once"})


def test_it_can_be_left_out_and_is_not_sent_without_a_head(harness, answer):
    def handler(request):
        listed = {"data": [{"id": "m"}]}
        return httpx2.Response(200, json=listed if request.method == "GET" else answer())

    harness.ask(handler, lambda client: client.chat("x"), affinity=False)
    harness.ask(handler, lambda client: client.models())
    assert not any("X-Saccade-Affinity" in request.headers for request in harness.requests)
