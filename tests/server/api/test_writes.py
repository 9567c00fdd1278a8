"""What a step writes: one message of the engine, one write of each stream, the same bytes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade_server.api.chunks import TextEvents
from saccade_server.api.layers.shortcut import SHORTCUT
from saccade_server.api.openapi.replies import ChatChunk, TextChunk
from saccade_server.api.sse import frame
from saccade_server.engine.mailbox import MANY
from saccade_server.engine.messages import Outputs
from saccade_server.engine.request import TokenLogprobs
from saccade_testing.api import steps
from saccade_testing.api.logged import access_lines


def test_a_step_is_one_write_of_each_stream_and_wakes_nobody() -> None:
    async def test(stand: Any) -> None:
        streams = [await stand.ask() for _ in range(5)]
        stand.engine.step("a")
        await steps.settled()
        before = [len(each.transport.apart.writes) for each in streams]
        stand.engine.step("b")  # no task runs in here
        assert [len(each.transport.apart.writes) for each in streams] == [n + 1 for n in before]
        await steps.settled()
        assert [len(each.transport.apart.writes) for each in streams] == [n + 1 for n in before]
        stand.engine.end()
        await steps.settled()
        for each in streams:
            assert steps.texts(each) == "ab!"
            assert steps.events(each)[-1] == b"[DONE]"
            assert each.cycle.response_complete

    steps.run(test)


def test_steps_that_came_together_are_one_write_while_the_answer_begins() -> None:
    async def test(stand: Any) -> None:
        stream = await stand.ask()
        for token in "abc":
            stand.engine.step(token)
        assert stream.transport.apart.writes == []
        await steps.settled()
        assert len(stream.transport.apart.writes) == 1  # the head, and all events
        assert steps.texts(stream) == "abc"
        assert len(steps.events(stream)) == 4  # a role, and one for each token all the same
        stand.engine.end()
        await steps.settled()

    steps.run(test)


def test_an_answer_that_is_not_streamed_wakes_nobody_for_single_tokens() -> None:
    async def test(stand: Any) -> None:
        whole = await stand.ask(stream=False)
        entry = stand.engine._sequences[stand.engine.submitted[0].request.request_id]
        choice = entry.deliver.args[0]  # type: ignore[attr-defined]
        for _ in range(MANY - 1):
            stand.engine.step("a")
        await steps.settled()
        assert choice.completion_tokens == 0
        stand.engine.step("a")
        await steps.settled()
        assert choice.completion_tokens == MANY  # nor is so much left that it would hold others up
        stand.engine.step("b")
        stand.engine.end()
        await steps.settled()
        answer = json.loads(b"".join(whole.transport.apart.writes).partition(b"\r\n\r\n")[2])
        assert answer["choices"][0]["message"]["content"] == "a" * MANY + "b!"
        assert answer["usage"]["completion_tokens"] == MANY + 2

    steps.run(test)


def test_choices_of_one_request_come_in_order() -> None:
    async def test(stand: Any) -> None:
        stream = await stand.ask(n=3)
        for token in "xyz":
            stand.engine.step(token)
            await steps.settled()
        stand.engine.end()
        await steps.settled()
        found = [event["choices"][0] for event in steps.events(stream)[:-1]]
        for index in range(3):
            own = [choice for choice in found if choice["index"] == index]
            assert "".join(each["delta"].get("content", "") for each in own) == "xyz!"
            assert [each["finish_reason"] for each in own if each["finish_reason"]] == ["length"]

    steps.run(test)


def test_a_client_that_reads_slowly_loses_nothing() -> None:
    async def test(stand: Any) -> None:
        stream = await stand.ask()
        stand.engine.step("a")
        await steps.settled()
        stream.pause_writing()
        count = len(stream.transport.apart.writes)
        for token in "bcd":
            stand.engine.step(token)
            await steps.settled()
        assert len(stream.transport.apart.writes) == count
        stream.resume_writing()
        await steps.settled()
        stand.engine.step("e")
        stand.engine.end()
        await steps.settled()
        assert steps.texts(stream) == "abcde!"

    steps.run(test)


def test_a_client_that_leaves_ends_its_sequence() -> None:
    async def test(stand: Any) -> None:
        stream = await stand.ask()
        stand.engine.step("a")
        await steps.settled()
        stream.connection_lost(None)
        count = len(stream.transport.apart.writes)
        stand.engine.step("b")
        await steps.settled()
        assert len(stream.transport.apart.writes) == count
        assert stand.engine.aborted == [stand.engine.submitted[0].request.request_id]
        assert not stand.engine._sequences

    steps.run(test)


def test_a_client_without_chunks_gets_plain_bytes() -> None:
    async def test(stand: Any) -> None:
        stream = await stand.ask(http=0)
        for token in "ab":
            stand.engine.step(token)
            await steps.settled()
        stand.engine.end()
        await steps.settled()
        body = b"".join(stream.transport.apart.writes).partition(b"\r\n\r\n")[2]
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")
        assert body.count(b"\n\n") == 6

    steps.run(test)


def test_an_error_on_the_short_way_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(self: Any, index: int, text: str) -> bytes:
        raise RuntimeError("secret")

    async def test(stand: Any) -> None:
        stream = await stand.ask()
        stand.engine.step("a")
        await steps.settled()
        monkeypatch.setattr(TextEvents, "event", explode)
        stand.engine.step("b")
        await steps.settled()
        assert steps.events(stream)[-2]["error"]["code"] == "internal_error"
        assert steps.events(stream)[-1] == b"[DONE]"

    steps.run(test)


def test_the_length_of_an_answer_is_logged_whichever_way_it_went(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lengths: list[int] = []

    async def test(stand: Any) -> None:
        stream = await stand.ask()
        for _ in range(2):  # of one connection
            for token in "ab":
                stand.engine.step(token)
                await steps.settled()
            stand.engine.end()
            await steps.settled()
            lengths.append(len(steps.body(stream)))
            stand.engine.submitted.clear()
            stream.transport.apart.writes.clear()
            await stand.ask(on=stream)

    with caplog.at_level("INFO", "saccade.access"):
        steps.run(test)
    for length, line in zip(lengths, access_lines(caplog), strict=False):
        assert f" bytes={length} " in line


ASKED: list[dict[str, Any]] = [
    {},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"logprobs": True, "top_logprobs": 2},
    {"n": 2, "stop": ["zz"]},
]


@pytest.mark.parametrize("fields", ASKED, ids=str)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_both_ways_give_the_same_bytes(
    path: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events of one request, past the layers and through them, and as models of the API."""
    if "completions" in path and "chat" not in path:
        fields = {**fields, "prompt": "Hi"}
        if fields.pop("top_logprobs", None):
            fields["logprobs"] = 2
    given: dict[bool, list[Any]] = {}

    async def test(stand: Any) -> None:
        for short in (True, False):
            if not short:
                monkeypatch.setattr("saccade_server.api.sse.shortcut", lambda scope: None)
            stream = await stand.ask(path, **fields)
            for token in 'aé"\\\n':
                entry = (TokenLogprobs(ord(token), -0.5, ((65, -1.0), (66, -2.0))),)
                names = [each.request.request_id for each in stand.engine.submitted]
                if "logprobs" in fields:
                    news = [steps.output(name, token, logprobs=entry) for name in names]
                    stand.engine._receive(Outputs(outputs=news))
                else:
                    stand.engine.step(token)
                await steps.settled()
            stand.engine.end()
            await steps.settled()
            stand.engine.submitted.clear()
            given[short] = [
                {**event, "id": "", "created": 0} if isinstance(event, dict) else event
                for event in steps.events(stream)
            ]

    steps.run(test)
    assert json.dumps(given[True][:-1]) == json.dumps(given[False][:-1])
    model = ChatChunk if "chat" in path else TextChunk
    for event in given[True][:-1]:
        model.model_validate(event, strict=True)


@given(text=st.text(st.characters(exclude_categories=["Cs"])), index=st.integers(0, 20))
def test_an_event_put_together_is_the_event_encoded_whole(text: str, index: int) -> None:
    def chunk(index: int, text: str) -> dict[str, Any]:
        choice = {"index": index, "delta": {"content": text}, "logprobs": None}
        return {"id": 'x"', "model": "ü\n", "choices": [choice], "usage": None}

    made = TextEvents(chunk)
    assert made.event(index, "again") == frame(chunk(index, "again"))
    assert made.event(index, text) == frame(chunk(index, text))


def test_every_connection_is_a_short_way() -> None:
    """The tests of the API take the other one, for their document is held against every event."""

    async def test(stand: Any) -> None:
        stream = await stand.ask()
        assert stream.cycle.scope["state"][SHORTCUT] is stream

    steps.run(test)
