"""Every failure is one of ours: nothing of httpx, pydantic, json or numpy reaches who calls."""

import gzip
import hashlib
import json
import pickle
import struct
from io import BytesIO

import httpx2
import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict

import saccade_client as sdk
from saccade_client import failures, retry

HEADERS = {"content-type": "text/event-stream"}
UNREADABLE = "invalid_response"


def yes(request):
    return httpx2.Response(200, json={"choices": [{"message": {"content": "x"}, "text": "x"}]})


def packed_wrongly(request):
    stream = httpx2.ByteStream(b"this is no gzip")
    return httpx2.Response(200, headers={"content-encoding": "gzip"}, stream=stream)


ENDLESS: list = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    "options",
    [
        {"trace": {"a": ENDLESS}},
        {"interventions": [{"method": "var", "layers": ENDLESS}]},
        {"extra": [1]},
        {"extra": {"user": object()}},
        {"extra": {"user": ENDLESS}},
        {"model": b"m"},
        {"prompt": [{"role": "user", "content": 5}], "images": "http://a/b"},
        {"prompt": [{"role": "user", "content": object()}]},
        {"prompt": [{"role": "user", "content": ENDLESS}]},
        {"response_format": {"type": "object", "default": ENDLESS}},
        {"tools": [{"function": object()}]},
        {"tool_choice": {"function": object()}},
        {"regex": object()},
        {"choice": ["\ud800"]},
    ],
)
def test_what_cannot_be_sent(harness, options):
    options = {"prompt": "x", "model": "m", **options}
    with pytest.raises(sdk.InvalidInput):
        harness.ask(yes, lambda client: client.chat(options.pop("prompt"), **options))
    assert harness.requests == []


def test_keys_that_are_no_texts_become_texts(harness):
    harness.ask(yes, lambda client: client.chat([{"role": "user", 1: "x", "b": 2}], model="m"))
    assert harness.bodies[0]["messages"] == [{"role": "user", "1": "x", "b": 2}]


@pytest.mark.parametrize("messages", [5, None, [1], [None], {"role": "user"}])
def test_fields_of_your_own_do_not_break_what_is_made_of_the_answer(harness, messages):
    extra = {"messages": messages}
    answer = harness.ask(yes, lambda client: client.complete("x", model="m", extra=extra))
    assert answer.text == "x"


@pytest.mark.parametrize(
    "settings",
    [
        *({"timeout": value} for value in (-1, 0, float("nan"), "5", 1e300, (), object())),
        {"timeout": httpx2.Timeout(5.0, read=-1.0)},
        {"timeout": httpx2.Timeout(5.0, connect=float("inf"))},
        {"base_url": f"http://{'a' * 70}.example"},
        {"base_url": "http://a..b"},
        {"api_key": 3},
        {"admin_key": b"root"},
    ],
)
def test_settings(harness, settings):
    with pytest.raises(sdk.InvalidInput):
        harness.ask(yes, lambda client: client.chat("x", model="m"), **settings)


@pytest.mark.parametrize("timeout", [None, 5, 0.5, httpx2.Timeout(None, connect=5.0)])
def test_timeouts_that_are_some(harness, timeout):
    assert harness.ask(yes, lambda client: client.chat("x", model="m"), timeout=timeout).text == "x"


@pytest.mark.parametrize("kind", [sdk.Saccade, sdk.AsyncSaccade])
@pytest.mark.parametrize(
    ("variable", "value"), [("HTTP_PROXY", "foo://x"), ("SSL_CERT_FILE", "/no/such/file")]
)
def test_the_environment(kind, variable, value, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(sdk.InvalidInput, match="environment"):
        kind()


def test_a_closed_client(harness):
    def closing(client):
        client.close()
        return client.chat("x", model="m")

    async def aclosing(client):
        await client.aclose()
        return await client.chat("x", model="m")

    with pytest.raises(sdk.InvalidInput, match="closed"):
        harness.ask(yes, closing if harness.mode == "sync" else aclosing)


@pytest.mark.parametrize("method", ["\ud800", 3, None, ""])
def test_names_of_methods(harness, method):
    with pytest.raises(sdk.InvalidInput):
        harness.ask(yes, lambda client: client.intervention(method))


@pytest.mark.parametrize("use", ["models", "ready"])
def test_a_reply_that_cannot_be_unpacked(harness, use):
    with pytest.raises(sdk.APIError, match="could not be understood") as caught:
        harness.ask(packed_wrongly, lambda client: getattr(client, use)(), max_retries=0)
    assert caught.value.code == UNREADABLE


def test_a_stream_that_cannot_be_unpacked(harness, pieces):
    body = pieces(gzip.compress(b"data: {}\n\n" * 99)[:20], b"and then no gzip" * 9)
    headers = {**HEADERS, "content-encoding": "gzip"}
    with pytest.raises(sdk.StreamInterrupted, match="broke off"):
        harness.stream(
            lambda request: httpx2.Response(200, headers=headers, stream=body),
            lambda client: client.stream_chat("x", model="m"),
        )


@pytest.mark.parametrize(
    "value",
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2020 00:00:00 +99999999999999",
        "Mon, 01 Jan 2020 99:99:99 GMT",
        ".",
        "",
    ],
)
def test_a_date_that_is_none_is_no_wish(value):
    assert retry.retry_after(value, 0.0) is None


@pytest.mark.parametrize("depth", [100, 900, 990, 1000, 5000])
def test_deep_replies(depth):
    content = b"[" * depth + b"]" * depth
    error = failures.reply_error(httpx2.Response(500, content=content))
    assert error.message.startswith("[[[")


def test_a_picture_that_is_cut_short(harness):
    buffer = BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    cut = Image.open(BytesIO(buffer.getvalue()[:-2000]))
    closed = Image.open(BytesIO(buffer.getvalue()))
    closed.close()
    for image in (cut, closed):
        with pytest.raises(sdk.InvalidInput, match="cannot be read"):
            harness.ask(yes, lambda client, i=image: client.chat("x", images=i, model="m"))


def array(**changes):
    facts = {"dtype": "float32", "shape": [2], "axes": ["row"], "data": [1.0, 2.0], **changes}
    return sdk.Trace.model_validate({"arrays": {"a": facts}})


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float99"},
        {"shape": [3]},
        {"shape": [-2, -1]},
        {"data": "not base64!"},
        {"data": "AAA="},
        {"data": ["x", "y"]},
        {"data": {"a": 1}},
        {"dtype": "int32", "data": [2**70, 1]},
    ],
)
def test_arrays_that_are_none(changes):
    with pytest.raises(sdk.APIError) as caught:
        array(**changes)["a"]
    assert caught.value.code == UNREADABLE


@pytest.mark.parametrize("name", ["heatmaps.x", "heatmaps.7", "masses"])
def test_a_notebook_is_shown_no_array_that_is_none(name):
    facts = {"dtype": "float32", "shape": [1, 1], "axes": ["row", "layer"], "data": [[1.0]]}
    trace = sdk.Trace.model_validate({"arrays": {name: facts}})
    with pytest.raises(sdk.APIError, match="could not be understood"):
        trace.html()


def safetensors(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + np.float32([1, 2]).tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        safetensors(b"{"),
        safetensors([]),
        safetensors({"a": 3}),
        safetensors({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}),
        safetensors({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9, 10]}}),
        safetensors({"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    ],
)
def test_a_file_behind_a_link_that_is_none(content):
    link = "/v1/traces/" + hashlib.sha256(content).hexdigest()
    facts = {"dtype": "float32", "shape": [2], "axes": ["row"]}
    trace = sdk.Trace.model_validate({"arrays": {"a": facts}, "link": link})
    trace.attach(lambda link: content, [])
    with pytest.raises(sdk.APIError) as caught:
        trace["a"]
    assert caught.value.code == UNREADABLE


def test_an_answer_with_a_trace_can_be_pickled():
    link = "/v1/traces/" + "0" * 64
    payload = {"choices": [{"message": {"content": "x"}, "trace": {"link": link}}]}
    with sdk.Saccade(
        transport=httpx2.MockTransport(lambda request: httpx2.Response(200, json=payload))
    ) as client:
        answer = client.chat("x", model="m")
    kept = pickle.loads(pickle.dumps(answer))
    assert kept.model_dump() == answer.model_dump()
    with pytest.raises(sdk.InvalidInput, match="load_trace"):
        kept.trace.fill(kept.trace._fetched())


def nested(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def test_results_that_cannot_be_written():
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        thing: object = object()

    function = {"name": "look", "arguments": "{}"}
    call = sdk.ToolCall.model_validate({"function": function})
    for result in (Odd(), object(), nested(5000), {"a": float("inf")}):
        with pytest.raises(sdk.InvalidInput, match="the result of look"):
            call.reply(result)


def test_no_scores():
    with pytest.raises(sdk.AnswerInvalid, match="no scores"):
        _ = sdk.Scores(scores=[]).likeliest


@pytest.mark.parametrize("shape", [(0, 0), (0, 5, 3), (2, 0)])
def test_pictures_without_pixels(shape):
    with pytest.raises(sdk.InvalidInput, match="no pixels"):
        sdk.image_part(np.zeros(shape, np.uint8))
