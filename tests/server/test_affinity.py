"""The server's own copy of the key that the SDK sends, for requests that came without it."""

import json
from pathlib import Path

import pytest

from saccade_client import affinity as sent
from saccade_server import affinity

VECTORS = json.loads((Path(__file__).parents[1] / "support/affinity.json").read_text("utf-8"))
NESTED: list[object] = []
for _ in range(100_000):
    NESTED = [NESTED]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["about"])
def test_keys_are_those_of_the_sdk(vector):
    assert affinity.affinity_key(vector["body"]) == vector["key"]
    assert affinity.HEADER == sent.HEADER


@pytest.mark.parametrize(
    "body",
    [
        {"messages": "x", "prompt": 3},
        {"messages": None},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [NESTED]},
        {"prompt": {}},
    ],
    ids=["types", "null", "surrogate", "nested", "object"],
)
def test_whatever_json_somebody_sends_has_a_key_or_none(body):
    assert affinity.affinity_key(body) is None


@pytest.mark.parametrize("message", ["x", 3, None, ["role"], {"role": ["user"]}])
def test_what_is_no_message_is_no_users(message):
    user = {"role": "user", "content": "x"}
    key = affinity.affinity_key({"messages": [message, user, {"role": "assistant"}]})
    assert key == affinity.affinity_key({"messages": [message, user]}) is not None
