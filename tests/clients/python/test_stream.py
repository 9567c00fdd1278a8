"""Streams over a mock transport: what is yielded, what adds up, and how they break."""

import json

import httpx2
import pytest

import saccade_client as sdk

HEADERS = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "r-5"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
RECEIPT = [{"index": 0, "method": "var", "layers": [1], "status": "no_effect"}]


def piece(text=None, index=0, finish_reason=None, **fields):
    delta = {} if text is None else {"content": text}
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason, **fields}
    return {"id": "c1", "model": "tiny", "choices": [choice], "usage": None}


LAST = {"id": "c1", "choices": [], "usage": USAGE, "interventions_applied": RECEIPT}


def body_of(stream):
    return lambda request: httpx2.Response(200, headers=HEADERS, stream=stream)


def chat(client):
    return client.stream_chat("x", model="m")


def test_chunks_then_the_whole_answer(harness, sse, pieces):
    role = {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    body = pieces(sse(role, piece("grü"), piece("ßt"), piece(finish_reason="stop"), LAST, "[DONE]"))
    chunks, stream = harness.stream(body_of(body), chat)
    assert [chunk.text for chunk in chunks] == ["", "grü", "ßt", "", ""]
    final = stream.final
    assert isinstance(final, sdk.ChatCompletion)
    assert (final.text, final.model, final.request_id) == ("grüßt", "tiny", "r-5")
    assert final.choices[0].finish_reason == "stop"
    assert (final.usage.total_tokens, final.interventions_applied[0].status) == (5, "no_effect")
    assert (stream.text, stream.request_id) == ("grüßt", "r-5")
    assert body.closed
    (sent,) = harness.bodies
    assert (sent["stream"], sent["stream_options"]) == (True, {"include_usage": True})
    assert harness.requests[0].headers["accept"] == "text/event-stream"


def test_several_answers_are_kept_apart(harness, sse, pieces):
    body = pieces(
        sse(piece("b", 1), piece("a", 0), piece("B", 1, "length"), piece("", 1), "[DONE]")
    )
    chunks, stream = harness.stream(body_of(body), chat)
    assert [chunk.text for chunk in chunks] == ["", "a", "", ""]
    assert [choice.text for choice in stream.final.choices] == ["a", "bB"]
    assert [choice.finish_reason for choice in stream.final.choices] == [None, "length"]


def test_log_probabilities_add_up(harness, sse, pieces):
    def content(token):
        return {"content": [{"token": token, "logprob": -0.5, "top_logprobs": []}]}

    body = pieces(
        sse(piece("a", logprobs=content("a")), piece("b", logprobs=content("b")), "[DONE]")
    )
    _, stream = harness.stream(body_of(body), chat)
    assert [item.token for item in stream.final.choices[0].logprobs.content] == ["a", "b"]


def test_a_completion_stream(harness, sse, pieces):
    def text(value, offset):
        logprobs = {"tokens": [value], "token_logprobs": [-1.0], "text_offset": [offset]}
        return {"choices": [{"index": 0, "text": value, "logprobs": logprobs}]}

    body = pieces(sse(text("a", 0), text("b", 1), {**LAST, "interventions_applied": []}, "[DONE]"))
    chunks, stream = harness.stream(
        body_of(body), lambda client: client.stream_complete("x", model="m")
    )
    assert [chunk.text for chunk in chunks] == ["a", "b", ""]
    assert isinstance(stream.final, sdk.Completion)
    assert stream.final.text == "ab"
    assert stream.final.choices[0].logprobs.text_offset == [0, 1]
    assert stream.final.usage.total_tokens == 5


def test_bytes_may_be_cut_anywhere(harness, sse, pieces):
    payloads = [json.dumps(item, ensure_ascii=False) for item in (piece("眼"), piece("鏡"), LAST)]
    whole = sse(*payloads, "[DONE]")
    _, stream = harness.stream(
        body_of(pieces(*[bytes([value]) for value in b": ping\n\n" + whole])), chat
    )
    assert stream.final.text == "眼鏡"


def test_what_follows_the_end_marker_is_ignored(harness, sse, pieces):
    after = httpx2.ReadError("closed without ceremony")
    body = pieces(sse(piece("a"), "[DONE]", piece("b")), sse(piece("c")), after)
    chunks, stream = harness.stream(body_of(body), chat)
    assert (len(chunks), stream.final.text) == (1, "a")


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ([], r"stopped before \[DONE\]"),
        ([b"data: [DONE]"], r"stopped before \[DONE\]"),
        ([b'data: {"choices": ['], r"stopped before \[DONE\]"),
        ([httpx2.ReadError("reset")], "broke off: reset"),
        ([httpx2.RemoteProtocolError("incomplete")], "broke off: incomplete"),
        ([b"data: not json\n\n"], "no chunk: 'not json'"),
        ([b"data: [1]\n\n"], r"no chunk: '\[1\]'"),
        ([b'data: {"choices": 3}\n\n'], "no chunk"),
    ],
)
def test_a_broken_stream_says_so_and_keeps_the_text(harness, sse, pieces, tail, reason):
    body = pieces(sse(piece("so "), piece("far")), *tail)
    with pytest.raises(sdk.StreamInterrupted, match=reason) as caught:
        harness.stream(body_of(body), chat)
    assert (caught.value.text, caught.value.request_id) == ("so far", "r-5")
    assert len(harness.requests) == 1
    assert body.closed


def test_silence_is_a_timeout(harness, sse, pieces):
    body = pieces(sse(piece("a")), httpx2.ReadTimeout(""))
    with pytest.raises(sdk.Timeout, match="went silent"):
        harness.stream(body_of(body), chat)
    assert len(harness.requests) == 1


def test_an_error_inside_the_stream_is_raised(harness, sse, pieces):
    error = {
        "error": {"message": "draining", "type": "overloaded_error", "code": "server_draining"}
    }
    body = pieces(sse(piece("a"), error, "[DONE]"))
    with pytest.raises(sdk.ServerBusy, match="draining") as caught:
        harness.stream(body_of(body), chat)
    assert (caught.value.code, caught.value.request_id) == ("server_draining", "r-5")
    assert len(harness.requests) == 1
    assert body.closed


def test_an_endless_event_is_refused(harness, sse, pieces, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("saccade_client.sse.LARGEST_EVENT", 1000)
    body = pieces(sse(piece("a")), *[b"data: " + b"x" * 500] * 4)
    with pytest.raises(sdk.StreamInterrupted, match="exceeds 1000 bytes"):
        harness.stream(body_of(body), chat)


def test_before_the_first_byte_a_stream_is_retried(harness, sse, pieces):
    replies = iter(
        [
            httpx2.Response(503, json={"error": {"message": "full"}}),
            httpx2.Response(200, headers=HEADERS, stream=pieces(sse(piece("a"), "[DONE]"))),
        ]
    )
    _, stream = harness.stream(lambda request: next(replies), chat)
    assert (stream.final.text, harness.waits) == ("a", [0.5])


def test_a_refusal_is_read_and_raised(harness, pieces):
    body = pieces(b'{"error": {"message": "no image', b'", "code": "intervention_requires_image"}}')
    with pytest.raises(sdk.BadRequest, match="no image"):
        harness.stream(lambda request: httpx2.Response(400, stream=body), chat)
    assert body.closed


def test_a_refusal_that_breaks_off_is_a_lost_connection(harness, pieces):
    body = pieces(b'{"error"', httpx2.ReadError("reset"))
    with pytest.raises(sdk.ConnectionFailed, match="reset"):
        harness.stream(lambda request: httpx2.Response(400, stream=body), chat)
    assert len(harness.requests) == 3
    assert body.closed


def test_a_success_that_is_no_stream_is_an_error(harness):
    with pytest.raises(sdk.APIError, match="got application/json") as caught:
        harness.stream(lambda request: httpx2.Response(200, json={"choices": []}), chat)
    assert caught.value.code == "invalid_response"


def test_leaving_early_closes_and_has_no_final_answer(sse, pieces):
    body = pieces(sse(piece("a")), sse(piece("b")), sse("[DONE]"))
    with sdk.Saccade(transport=httpx2.MockTransport(body_of(body))) as client:
        with chat(client) as stream:
            for _ in stream:
                break
            with pytest.raises(sdk.StreamInterrupted, match="has not reached its end"):
                _ = stream.final
        assert (body.closed, stream.text) == (True, "a")
        with pytest.raises(sdk.StreamInterrupted, match="inside its with block"):
            list(stream)


def test_an_exception_in_the_block_closes_the_stream(harness, sse, pieces):
    def fail(client):
        with chat(client):
            raise KeyError("of the user's own")

    async def afail(client):
        async with chat(client):
            raise KeyError("of the user's own")

    body = pieces(sse(piece("a"), "[DONE]"))
    with pytest.raises(KeyError):
        harness.ask(body_of(body), fail if harness.mode == "sync" else afail)
    assert body.closed
