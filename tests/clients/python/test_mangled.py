"""Replies with something else in every place: an answer comes of them, or an error of ours."""

import copy
import json
import random

import httpx2
import numpy as np
import pytest

import saccade_client as sdk

pytestmark = pytest.mark.slow

JUNK = [
    *(None, True, 0, -1, 2**70, 1.5, "", "x", "\ud800", [], {}, [[]], [None], {"a": None}),
    *("NaN", "9" * 400, [{}], {"": {}}, "sha256:", "/v1/traces/" + "0" * 64, [0] * 3),
]
ARRAY = {"dtype": "float32", "shape": [2], "axes": ["row"], "data": [1.0, 2.0], "unit": "nat"}
HEAT = {
    **ARRAY,
    "shape": [1, 1, 1, 2],
    "axes": ["row", "layer", "height", "width"],
    "data": [[[[0.5, 1.0]]]],
    "coordinates": {"row": [3], "layer": [0]},
}
MASSES = {
    **ARRAY,
    "shape": [1, 2],
    "axes": ["layer", "class"],
    "data": [[0.5, 0.5]],
    "coordinates": {"layer": [0], "class": ["image", "rest"]},
}
VIEW = {"start": 0, "length": 2, "grid": [1, 2], "box": [0, 0, 1, 1], "size": [4, 4]}
TRACE = {
    "prompt_tokens": 3,
    "images": [[VIEW]],
    "arrays": {"entropy": ARRAY, "heatmaps.0": HEAT, "masses": MASSES},
}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
USAGE = {
    "prompt_tokens": 1,
    "completion_tokens_details": {"reasoning_tokens": 2},
    "prompt_tokens_details": {"cached_tokens": 3},
}
FORM = {"kind": "tools", "constrained_tokens": 3, "forced_tokens": 1, "complete": True}
LOGPROBS = {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": [], "bytes": [97]}]}
APPLIED = {"index": 0, "method": "var", "layers": [1], "status": "applied", "rows": {"prompt": 1}}
MORE = {"trace": TRACE, "structured_output": FORM, "detectors": [{"name": "svar", "score": 1.0}]}
CHAT = {
    "id": "c",
    "created": 1,
    "model": "m",
    "usage": USAGE,
    "interventions_applied": [APPLIED],
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"content": '{"x": 1}', "reasoning_content": "h", "tool_calls": [CALL]},
            "logprobs": LOGPROBS,
            **MORE,
        }
    ],
}
CHUNK = {
    **CHAT,
    "choices": [
        {
            "index": 0,
            "delta": {
                "content": "1",
                "reasoning_content": "h",
                "tool_calls": [{"index": 0, **CALL}],
            },
            "finish_reason": None,
            "logprobs": LOGPROBS,
            **MORE,
        }
    ],
}
TEXT = {
    "choices": [
        {
            "text": "1",
            "index": 0,
            "logprobs": {"tokens": ["a"], "token_logprobs": [-1.0], "text_offset": [0]},
            "prompt_logprobs": [None, {"3": {"logprob": -1.0, "rank": 1}}],
            **MORE,
        }
    ]
}
FAILURE = {"error": {"message": "m", "type": "overloaded_error", "code": "c", "param": "p"}}
SCORES = {"scores": [{"logprob": -1.0, "is_greedy": True, "token_count": 1, "tokens": ["a"]}]}
LISTED = {"id": "var", "version": "1", "schema": {"type": "object"}, "example": {}}


def places(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def mangled(payload):
    """Yield the payload with junk in one place, each place with all junk; and some cut short."""
    for path in places(payload):
        for junk in JUNK:
            changed = copy.deepcopy(payload)
            if not path:
                yield json.dumps(junk).encode()
                continue
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = junk
            yield json.dumps(changed).encode()
    text = json.dumps(payload).encode()
    generator = random.Random(7)
    for _ in range(50):
        at = generator.randrange(len(text))
        yield text[:at]
        yield text[:at] + bytes([generator.randrange(256)]) + text[at + 1 :]


def seen(answer):
    """Look at all that an answer has to say."""
    for name in (
        *("text", "reasoning", "tool_calls", "structured_output", "detectors", "request_id"),
        *("logprobs", "likeliest", "json_schema", "tokens", "trace"),
    ):
        ours(lambda name=name: getattr(answer, name, None))
    if isinstance(answer, sdk.ChatCompletion):
        ours(lambda: answer.parse(dict[str, int]))
        ours(lambda: answer.message.entry())
        for call in answer.tool_calls:
            ours(lambda call=call: call.arguments)
            ours(lambda call=call: call.parse(dict[str, int]))
            ours(lambda call=call: call.reply({"a": 1}))
    if answer is not None and getattr(answer, "usage", None):
        assert answer.usage.reasoning_tokens is not None
        assert answer.usage.cached_tokens is not None
    trace = getattr(answer, "trace", None)
    if trace is not None:
        ours(trace.html)
        for name in trace.keys():  # noqa: SIM118  (iteration is pydantic's own)
            ours(lambda name=name: np.asarray(trace[name]))
    repr(answer)


def ours(use):
    """Return what `use` does, or None for an error of the SDK; any other escapes."""
    try:
        return use()
    except sdk.SaccadeError:
        return None


USES = {
    "chat": (CHAT, lambda client: client.chat("x", model="m")),
    "parse": (CHAT, lambda client: client.parse("x", dict, model="m")),
    "complete": (TEXT, lambda client: client.complete("x", model="m")),
    "score": (SCORES, lambda client: client.score(["a"], prompt="x", model="m")),
    "tokenize": ({"count": 1, "tokens": [1]}, lambda client: client.tokenize("x", model="m")),
    "detokenize": ({"prompt": "x"}, lambda client: client.detokenize([1], model="m")),
    "model": ({"data": [{"id": "m", "created": 1}]}, lambda client: client.models()),
    "intervention": (LISTED, lambda client: client.intervention("var")),
    "artifacts": ({"data": [{"id": "a", "bytes": 1}]}, lambda client: client.artifacts()),
    "validate": ({"interventions": [APPLIED]}, lambda client: client.validate("var", model="m")),
}


@pytest.mark.parametrize("name", USES)
def test_successes(name):
    payload, use = USES[name]
    replies = mangled(payload)
    reply = lambda request: httpx2.Response(200, content=next(replies))
    count = 0
    with sdk.Saccade(transport=httpx2.MockTransport(reply), max_retries=0) as client:
        for _ in mangled(payload):
            seen(ours(lambda: use(client)))
            count += 1
    assert count > 100


@pytest.mark.parametrize("status", [302, 400, 503])
def test_failures(status):
    replies = mangled(FAILURE)
    reply = lambda request: httpx2.Response(status, content=next(replies))
    with sdk.Saccade(transport=httpx2.MockTransport(reply), max_retries=0) as client:
        for _ in mangled(FAILURE):
            with pytest.raises(sdk.APIError) as caught:
                client.chat("x", model="m")
            assert str(caught.value)


@pytest.mark.parametrize("payload", [CHUNK, FAILURE], ids=["chunk", "failure"])
@pytest.mark.parametrize("form", ["chat", "parse", "complete"])
def test_streams(payload, form):
    replies = mangled(payload)

    def reply(request):
        data = b"data: " + next(replies) + b"\n\n"
        last = b'data: {"choices": [{"index": 0, "delta": {"content": "2"}, "text": "2"}]}\n\n'
        body = httpx2.ByteStream(data + data + last + b"data: [DONE]\n\n")
        return httpx2.Response(200, stream=body, headers={"content-type": "text/event-stream"})

    def use(client):
        opened = {
            "chat": lambda: client.stream_chat("x", model="m"),
            "parse": lambda: client.stream_parse("x", dict, model="m"),
            "complete": lambda: client.stream_complete("x", model="m"),
        }
        with opened[form]() as stream:
            for chunk in stream:
                seen(chunk)
        return stream.final

    with sdk.Saccade(transport=httpx2.MockTransport(reply), max_retries=0) as client:
        for _ in mangled(payload):
            seen(ours(lambda: use(client)))
