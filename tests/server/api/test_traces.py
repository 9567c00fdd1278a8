"""Traces through HTTP: what is refused, what comes back, and in which form."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from saccade_testing.api.bodies import PICTURE, image_messages, parse_events
from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.server import MakeServer, Server
from saccade_testing.api.traced import values

PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
}
SEEN = {"messages": image_messages(PICTURE)}


def traces(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [choice["trace"] for choice in answer.json()["choices"]]


def trace_of(server: Server, **fields: Any) -> dict[str, Any]:
    (found,) = traces(server.chat(**fields))
    return found


def array(entry: dict[str, Any]) -> Any:
    kind = np.dtype(entry["dtype"])
    data = entry["data"]
    if isinstance(data, str):
        found = np.frombuffer(base64.b64decode(data), kind).reshape(entry["shape"])
    else:
        found = np.asarray(data, kind)
    assert list(found.shape) == entry["shape"]
    assert len(entry["axes"]) == found.ndim
    for axis, coordinates in entry["coordinates"].items():
        assert len(coordinates) == found.shape[entry["axes"].index(axis)]
    return found


def expected(server: Server, name: str, rows: range) -> Any:
    request = server.engine.requests[-1]
    (reading,) = [r for r in request.trace.readings if r.name == name]
    return values(reading, rows)


def test_entropy_of_each_token(server: Server):
    found = trace_of(server, trace={"entropy": True}, max_tokens=4)
    start = found["prompt_tokens"] - 1
    entry = found["arrays"]["entropy"]
    assert entry["axes"] == ["row"]
    assert entry["coordinates"] == {"row": list(range(start, start + 4))}
    assert (entry["unit"], entry["mean_over"]) == ("nats", {})
    assert np.array_equal(array(entry), np.arange(start, start + 4))
    assert found["bytes"] == 16
    assert found["question"] == [0, start + 1]
    assert found["images"] == []


def test_the_end_token_has_a_row(server: Server):
    found = trace_of(server, trace={"entropy": True})
    assert len(array(found["arrays"]["entropy"])) == len(server.engine.answer) + 1


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_has_it_in_the_last_chunk_of_each_choice(server: Server, path):
    body = PATHS[path] | {"trace": {"entropy": True}, "max_tokens": 3, "n": 3}
    whole = traces(server.http.post(path, json=body))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, end = parse_events(server.http.post(path, json=body | options).text)
    assert end == "[DONE]"
    told = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [c["index"] for c in told if "trace" in c] == [
        c["index"] for c in told if c["finish_reason"]
    ]
    assert [c["trace"] for c in sorted(told, key=lambda c: c["index"]) if "trace" in c] == whole
    assert len(whole) == 3


def test_every_prompt_has_its_own(server: Server):
    body = {"prompt": ["ab", "abcd"], "trace": {"entropy": True}, "max_tokens": 2, "n": 2}
    found = traces(server.http.post("/v1/completions", json=body))
    assert [each["prompt_tokens"] for each in found] == [2, 2, 4, 4]
    assert [each["arrays"]["entropy"]["data"] for each in found] == [[1, 2]] * 2 + [[3, 4]] * 2
