"""What an answer thinks and calls, whole and streamed: both must add up to the same message."""

import httpx2
import pytest

import saccade_client as sdk

HEADERS = {"content-type": "text/event-stream", "x-request-id": "r-5"}
RECEIPT = {"kind": "tools", "constrained_tokens": 9, "forced_tokens": 4, "complete": True}
DETAILS = {"reasoning_tokens": 5}
USAGE = {
    "completion_tokens": 8,
    "completion_tokens_details": DETAILS,
    "prompt_tokens_details": {"cached_tokens": 3},
}


def call(index, arguments, **head):
    """A piece of a call; only the first has a head: its id and name."""
    function = {"arguments": arguments, **({"name": head.pop("name")} if head else {})}
    return {"index": index, **head, "function": function}


def delta(index=0, finish_reason=None, **fields):
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish_reason}]}


def streamed(harness, sse, pieces, *payloads):
    body = pieces(sse(*payloads, "[DONE]"))
    return harness.stream(
        lambda request: httpx2.Response(200, headers=HEADERS, stream=body),
        lambda client: client.stream_chat("x", model="m"),
    )


def test_pieces_of_reasoning_and_of_calls_add_up_to_the_whole_answer(harness, sse, pieces):
    entries = [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "stop", "arguments": "{}"}},
    ]
    message = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "Hm. So?",
        "tool_calls": entries,
    }
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": "tool_calls",
        "structured_output": RECEIPT,
    }
    payload = {"choices": [choice], "usage": USAGE}
    whole = harness.ask(
        lambda request: httpx2.Response(200, json=payload),
        lambda client: client.chat("x", model="m"),
    )
    end = delta(finish_reason="tool_calls")
    end["choices"][0]["structured_output"] = RECEIPT
    chunks, stream = streamed(
        harness, sse, pieces,
        delta(role="assistant"), delta(reasoning_content="Hm. "), delta(reasoning_content="So?"),
        delta(tool_calls=[call(0, "", id="a", type="function", name="look")]),
        delta(tool_calls=[call(0, '{"x"')]),
        delta(tool_calls=[call(0, ": 1}"), call(1, "{}", id="b", type="function", name="stop")]),
        end, {"choices": [], "usage": USAGE},
    )  # fmt: skip
    assert [chunk.reasoning for chunk in chunks][1:3] == ["Hm. ", "So?"]
    assert [len(chunk.tool_calls) for chunk in chunks] == [0, 0, 0, 1, 1, 2, 0, 0]
    assert chunks[3].tool_calls[0].function.name == "look"
    final = stream.final
    assert final.model_dump(exclude_none=True) == whole.model_dump(exclude_none=True)
    for answer in (final, whole):
        assert (answer.text, answer.message.content, answer.reasoning) == ("", None, "Hm. So?")
        assert [item.name for item in answer.tool_calls] == ["look", "stop"]
        assert answer.tool_calls[0].arguments == {"x": 1}
        assert (answer.usage.reasoning_tokens, answer.usage.cached_tokens) == (5, 3)
        assert answer.structured_output.forced_tokens == 4
        assert answer.choices[0].reasoning == answer.message.reasoning == "Hm. So?"


def test_choices_are_kept_apart(harness, sse, pieces):
    chunks, stream = streamed(
        harness, sse, pieces,
        delta(1, reasoning_content="b"), delta(0, tool_calls=[call(0, "{", id="x", name="f")]),
        delta(1, content="B"), delta(1, tool_calls=[call(0, "[]", id="y", name="g")]),
        delta(0, tool_calls=[call(0, "}")]),
    )  # fmt: skip
    first, second = stream.final.choices
    assert (first.reasoning, first.text, first.message.content) == ("", "", None)
    assert (second.reasoning, second.text) == ("b", "B")
    assert [item.choices[0].message.tool_calls[0].id for item in [stream.final]] == ["x"]
    assert second.tool_calls[0].id == "y"
    assert (chunks[0].reasoning, chunks[3].tool_calls) == ("", [])


def test_an_answer_that_says_nothing_has_an_empty_text(harness, sse, pieces):
    _, stream = streamed(harness, sse, pieces, delta(role="assistant"), delta(finish_reason="stop"))
    message = stream.final.message
    assert (message.content, message.reasoning_content, message.tool_calls) == ("", None, [])


def test_a_refusal_adds_up(harness, sse, pieces):
    _, stream = streamed(harness, sse, pieces, delta(refusal="I will "), delta(refusal="not."))
    assert stream.final.message.refusal == "I will not."
    with pytest.raises(sdk.AnswerRefused, match=r"I will not\."):
        stream.final.parse(dict)


def test_null_means_nothing(harness, sse, pieces):
    nulls = delta(content=None, reasoning_content=None, tool_calls=None, refusal=None)
    chunks, stream = streamed(harness, sse, pieces, nulls)
    assert (chunks[0].text, chunks[0].reasoning, chunks[0].tool_calls) == ("", "", [])
    assert stream.final.tool_calls == []
    message = {"content": "a", "reasoning_content": None, "tool_calls": None}
    payload = {"choices": [{"message": message}], "usage": {"completion_tokens_details": None}}
    answer = harness.ask(
        lambda request: httpx2.Response(200, json=payload),
        lambda client: client.chat("x", model="m"),
    )
    assert (answer.reasoning, answer.tool_calls, answer.structured_output) == ("", [], None)
    assert (answer.usage.reasoning_tokens, answer.usage.cached_tokens) == (0, 0)


def test_calls_that_do_not_add_up_are_a_broken_stream(harness, sse, pieces):
    with pytest.raises(sdk.StreamInterrupted, match="no chunk"):
        streamed(harness, sse, pieces, delta(tool_calls=[3]))


def test_without_choices_there_is_no_message(harness):
    answer = harness.ask(
        lambda request: httpx2.Response(200, json={"choices": []}),
        lambda client: client.chat("x", model="m"),
    )
    assert (answer.text, answer.reasoning, answer.tool_calls) == ("", "", [])
    with pytest.raises(sdk.AnswerInvalid, match="no choices"):
        _ = answer.message


def test_options_of_reasoning(harness):
    handler = lambda request: httpx2.Response(200, json={"choices": []})
    harness.ask(
        handler,
        lambda client: client.chat("x", model="m", reasoning_effort="low", include_reasoning=False),
    )
    assert (harness.bodies[0]["reasoning_effort"], harness.bodies[0]["include_reasoning"]) == (
        "low", False
    )  # fmt: skip
