"""What a step writes: one message of the engine, one write of each stream, the same bytes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from saccade_server.api.app import create_app
from saccade_server.api.chunks import TextEvents
from saccade_server.api.layers.connections import HttpConfig
from saccade_server.api.layers.shortcut import SHORTCUT
from saccade_server.api.openapi.replies import ChatChunk, TextChunk
from saccade_server.api.settings import ApiSettings
from saccade_server.api.sse import frame
from saccade_server.engine.mailbox import MANY
from saccade_server.engine.messages import Abort, Outputs, Submit
from saccade_server.engine.request import EngineOutput, FinishReason, TokenLogprobs
from saccade_server.engine.streams import StreamingClient

HEAD = b"POST %b HTTP/1.%d\r\nhost: localhost\r\ncontent-type: application/json\r\n"


class Stepped(StreamingClient):
    """An engine whose steps a test makes."""

    def __init__(self, info: Any) -> None:
        super().__init__()
        self._info = info
        self.submitted: list[Submit] = []
        self.aborted: list[str] = []

    def _send(self, command: Any) -> None:
        if isinstance(command, Submit):
            self.submitted.append(command)
        elif isinstance(command, Abort):
            self.aborted.append(command.request_id)

    def step(self, token: str) -> None:
        numbers = [each.number for each in self.submitted]
        self._receive(Outputs(numbers, [ord(token)] * len(numbers)))

    def end(self) -> None:
        names = [each.request.request_id for each in self.submitted]
        reason = FinishReason.LENGTH
        self._receive(Outputs(outputs=[_output(n, "!", finish_reason=reason) for n in names]))

    async def close(self) -> None: ...


def _output(name: str, token: str, **more: Any) -> EngineOutput:
    return EngineOutput(request_id=name, tokens=(ord(token),), **more)


class Wire(asyncio.Transport):
    """Keeps what is written, each write apart."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if data:  # asyncio's own transports do nothing else with nothing
            self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class Stand:
    """An application, an engine that a test steps, and any number of connections."""

    def __init__(self, tools: Any) -> None:
        self.engine = Stepped(tools.info)
        settings = ApiSettings(served_model_name=tools.model)
        app = create_app(self.engine, tools.prompts(), tools.registry, settings)
        self.services = app.state.services
        self._config = HttpConfig(app, settings)
        self._config.load()
        self._model = tools.model

    async def ask(
        self, path: str = "/v1/chat/completions", http: int = 1, on: Any = None, **fields: Any
    ) -> Any:
        """A connection, a new one or ``on``, whose request the engine has."""
        asked = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {}
        body = json.dumps({"model": self._model, "stream": True, **asked, **fields}).encode()
        connection = on or self._connected()
        before = len(self.engine.submitted)
        head = HEAD % (path.encode(), http)
        connection.data_received(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        while len(self.engine.submitted) < before + fields.get("n", 1):
            await asyncio.sleep(0.001)
        return connection

    def _connected(self) -> Any:
        state = uvicorn.server.ServerState()
        made = self._config.http_protocol_class(
            config=self._config, server_state=state, app_state={}
        )
        made.connection_made(Wire())
        return made


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(tools: Any, test: Callable[[Stand], Awaitable[None]]) -> None:
    async def main() -> None:
        stand = Stand(tools)
        try:
            await test(stand)
        finally:
            stand.services.close()
            await settled()

    asyncio.run(main())


def body(connection: Any) -> bytes:
    """What came so far, of chunks that are whole."""
    data = b"".join(connection.transport.writes).partition(b"\r\n\r\n")[2]
    text = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        assert data[length : length + 2] == b"\r\n"
        text, data = text + data[:length], data[length + 2 :]
    return text


def events(connection: Any) -> list[Any]:
    """The data of the events so far."""
    found = [piece.removeprefix(b"data: ") for piece in body(connection).split(b"\n\n") if piece]
    return [piece if piece == b"[DONE]" else json.loads(piece) for piece in found]


def texts(connection: Any) -> str:
    found = [event["choices"][0] for event in events(connection) if event != b"[DONE]"]
    return "".join(choice["delta"].get("content", "") for choice in found)


def test_a_step_is_one_write_of_each_stream_and_wakes_nobody(tools: Any) -> None:
    async def test(stand: Stand) -> None:
        streams = [await stand.ask() for _ in range(5)]
        stand.engine.step("a")
        await settled()
        before = [len(each.transport.writes) for each in streams]
        stand.engine.step("b")  # no task runs in here
        assert [len(each.transport.writes) for each in streams] == [n + 1 for n in before]
        await settled()
        assert [len(each.transport.writes) for each in streams] == [n + 1 for n in before]
        stand.engine.end()
        await settled()
        for each in streams:
            assert texts(each) == "ab!"
            assert events(each)[-1] == b"[DONE]"
            assert each.cycle.response_complete

    run(tools, test)


def test_steps_that_came_together_are_one_write_while_the_answer_begins(tools: Any) -> None:
    async def test(stand: Stand) -> None:
        stream = await stand.ask()
        for token in "abc":
            stand.engine.step(token)
        assert stream.transport.writes == []
        await settled()
        assert len(stream.transport.writes) == 2  # the head, and all events
        assert texts(stream) == "abc"
        assert len(events(stream)) == 4  # a role, and one for each token all the same
        stand.engine.end()
        await settled()

    run(tools, test)


def test_an_answer_that_is_not_streamed_wakes_nobody_for_single_tokens(tools: Any) -> None:
    async def test(stand: Stand) -> None:
        whole = await stand.ask(stream=False)
        entry = stand.engine._sequences[stand.engine.submitted[0].request.request_id]
        choice = entry.deliver.args[0]  # type: ignore[attr-defined]
        for _ in range(MANY - 1):
            stand.engine.step("a")
        await settled()
        assert choice.completion_tokens == 0
        stand.engine.step("a")
        await settled()
        assert choice.completion_tokens == MANY  # nor is so much left that it would hold others up
        stand.engine.step("b")
        stand.engine.end()
        await settled()
        answer = json.loads(b"".join(whole.transport.writes).partition(b"\r\n\r\n")[2])
        assert answer["choices"][0]["message"]["content"] == "a" * MANY + "b!"
        assert answer["usage"]["completion_tokens"] == MANY + 2

    run(tools, test)


def test_choices_of_one_request_come_in_order(tools: Any) -> None:
    async def test(stand: Stand) -> None:
        stream = await stand.ask(n=3)
        for token in "xyz":
            stand.engine.step(token)
            await settled()
        stand.engine.end()
        await settled()
        found = [event["choices"][0] for event in events(stream)[:-1]]
        for index in range(3):
            own = [choice for choice in found if choice["index"] == index]
            assert "".join(each["delta"].get("content", "") for each in own) == "xyz!"
            assert [each["finish_reason"] for each in own if each["finish_reason"]] == ["length"]

    run(tools, test)


def test_a_token_does_not_overtake_what_came_before_it(tools: Any) -> None:
    """News with more than a token wake the answer, which has not had them when the token comes."""

    async def test(stand: Stand) -> None:
        stream = await stand.ask()
        stand.engine.step("a")
        await settled()
        name = stand.engine.submitted[0].request.request_id
        more = EngineOutput(request_id=name, tokens=(ord("b"), ord("c")))
        stand.engine._receive(Outputs(outputs=[more]))
        stand.engine.step("d")
        await settled()
        stand.engine.end()
        await settled()
        assert texts(stream) == "abcd!"

    run(tools, test)


def test_usage_so_far_is_that_of_each_event(tools: Any) -> None:
    async def test(stand: Stand) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        stream = await stand.ask(stream_options=options)
        for token in "abc":
            stand.engine.step(token)
            await settled()
        stand.engine.end()
        await settled()
        counts = [event["usage"]["completion_tokens"] for event in events(stream)[:-1]]
        assert counts == [1, 1, 2, 3, 4, 4, 4]  # a role, four texts, an end, and the whole

    run(tools, test)


def test_a_stop_string_ends_an_answer_that_is_not_streamed_at_once(tools: Any) -> None:
    async def test(stand: Stand) -> None:
        whole = await stand.ask(stream=False, stop=["bc"])
        for token in "abc":
            assert not stand.engine.aborted
            stand.engine.step(token)
            await settled()
        assert stand.engine.aborted == [stand.engine.submitted[0].request.request_id]
        stand.engine.end()
        await settled()
        answer = json.loads(b"".join(whole.transport.writes).partition(b"\r\n\r\n")[2])
        assert answer["choices"][0]["message"]["content"] == "a"

    run(tools, test)


def test_a_client_that_reads_slowly_loses_nothing(tools: Any) -> None:
    async def test(stand: Stand) -> None:
        stream = await stand.ask()
        stand.engine.step("a")
        await settled()
        stream.pause_writing()
        count = len(stream.transport.writes)
        for token in "bcd":
            stand.engine.step(token)
            await settled()
        assert len(stream.transport.writes) == count
        stream.resume_writing()
        await settled()
        stand.engine.step("e")
        stand.engine.end()
        await settled()
        assert texts(stream) == "abcde!"

    run(tools, test)


def test_a_client_that_leaves_ends_its_sequence(tools: Any) -> None:
    async def test(stand: Stand) -> None:
        stream = await stand.ask()
        stand.engine.step("a")
        await settled()
        stream.connection_lost(None)
        count = len(stream.transport.writes)
        stand.engine.step("b")
        await settled()
        assert len(stream.transport.writes) == count
        assert stand.engine.aborted == [stand.engine.submitted[0].request.request_id]
        assert not stand.engine._sequences

    run(tools, test)


def test_a_client_without_chunks_gets_plain_bytes(tools: Any) -> None:
    async def test(stand: Stand) -> None:
        stream = await stand.ask(http=0)
        for token in "ab":
            stand.engine.step(token)
            await settled()
        stand.engine.end()
        await settled()
        body = b"".join(stream.transport.writes).partition(b"\r\n\r\n")[2]
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")
        assert body.count(b"\n\n") == 6

    run(tools, test)


def test_text_that_may_be_a_stop_is_held_back_on_the_short_way_too(tools: Any) -> None:
    async def test(stand: Stand) -> None:
        stream = await stand.ask(stop=["cd"])
        for token in "abcd":
            stand.engine.step(token)
            await settled()
        assert texts(stream) == "ab"
        assert len(stand.engine.aborted) == 1
        stand.engine.step("e")
        stand.engine.end()
        await settled()
        assert texts(stream) == "ab"
        assert events(stream)[-2]["choices"][0]["finish_reason"] == "stop"

    run(tools, test)


def test_an_error_on_the_short_way_ends_the_stream(
    tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(self: Any, index: int, text: str) -> bytes:
        raise RuntimeError("secret")

    async def test(stand: Stand) -> None:
        stream = await stand.ask()
        stand.engine.step("a")
        await settled()
        monkeypatch.setattr(TextEvents, "event", explode)
        stand.engine.step("b")
        await settled()
        assert events(stream)[-2]["error"]["code"] == "internal_error"
        assert events(stream)[-1] == b"[DONE]"

    run(tools, test)


def test_the_length_of_an_answer_is_logged_whichever_way_it_went(
    tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lengths: list[int] = []

    async def test(stand: Stand) -> None:
        stream = await stand.ask()
        for _ in range(2):  # of one connection
            for token in "ab":
                stand.engine.step(token)
                await settled()
            stand.engine.end()
            await settled()
            lengths.append(len(body(stream)))
            stand.engine.submitted.clear()
            stream.transport.writes.clear()
            await stand.ask(on=stream)

    with caplog.at_level("INFO", "saccade.access"):
        run(tools, test)
    lines = [each.getMessage() for each in caplog.records if each.name == "saccade.access"]
    assert [f" {length}B " in line for length, line in zip(lengths, lines, strict=False)] == [
        True,
        True,
    ]


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
    tools: Any, path: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events of one request, past the layers and through them, and as models of the API."""
    if "completions" in path and "chat" not in path:
        fields = {**fields, "prompt": "Hi"}
        if fields.pop("top_logprobs", None):
            fields["logprobs"] = 2
    given: dict[bool, list[Any]] = {}

    async def test(stand: Stand) -> None:
        for short in (True, False):
            if not short:
                monkeypatch.setattr("saccade_server.api.sse.shortcut", lambda scope: None)
            stream = await stand.ask(path, **fields)
            for token in 'aé"\\\n':
                entry = (TokenLogprobs(ord(token), -0.5, ((65, -1.0), (66, -2.0))),)
                names = [each.request.request_id for each in stand.engine.submitted]
                if "logprobs" in fields:
                    news = [_output(name, token, logprobs=entry) for name in names]
                    stand.engine._receive(Outputs(outputs=news))
                else:
                    stand.engine.step(token)
                await settled()
            stand.engine.end()
            await settled()
            stand.engine.submitted.clear()
            given[short] = [
                {**event, "id": "", "created": 0} if isinstance(event, dict) else event
                for event in events(stream)
            ]

    run(tools, test)
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


def test_every_connection_is_a_short_way(tools: Any) -> None:
    """The tests of the API take the other one, for their document is held against every event."""

    async def test(stand: Stand) -> None:
        stream = await stand.ask()
        assert stream.cycle.scope["state"][SHORTCUT] is stream

    run(tools, test)
