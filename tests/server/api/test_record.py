"""What is known of a request, however it ends: once, whole, and nothing of its content."""

import json
import socket
import threading
from dataclasses import asdict, fields
from typing import Any

import pytest
from msgspec.structs import replace

from saccade_server.api.choice import Choice
from saccade_server.api.layers.record import Record, SequenceRecord
from saccade_server.api.metrics.tally import REASONS
from saccade_server.api.stops import StopStrings
from saccade_server.engine.request import (
    EngineOutput,
    FinishReason,
    GenerateRequest,
    SamplingParams,
)
from saccade_server.engine.timing import Timing
from saccade_testing.api.bodies import MODEL, chat_body
from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.server import MakeServer, Server, wait_for

PROMPT = "<user>Do not tell anybody.<assistant>"


class Watcher:
    """Keeps all records."""

    def __init__(self) -> None:
        self.begun_ids: list[str] = []
        self.records: list[Record] = []
        self.came = threading.Event()

    def begun(self, record: Record, headers: Any) -> None:
        self.begun_ids.append(record.id)
        assert headers["host"]

    def ended(self, record: Record) -> None:
        self.records.append(record)

    def one(self) -> Record:
        """The record of the only request since the last call."""
        wait_for(lambda: bool(self.records))
        (record,) = self.records
        self.records.clear()
        return record


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def server(watcher: Watcher, make_server: MakeServer) -> Server:
    return make_server(FakeEngine(), observers=[watcher], access_log=False)


def say(server: Server, **fields: Any) -> Any:
    return server.chat(messages=[{"role": "user", "content": "Do not tell anybody."}], **fields)


def test_a_record_of_an_answer(server: Server, watcher: Watcher) -> None:
    response = say(server, max_tokens=5)
    record = watcher.one()
    assert watcher.begun_ids == [record.id] == [response.headers["x-request-id"]]
    assert (record.method, record.route, record.status) == ("POST", "/v1/chat/completions", 200)
    assert (record.client, record.model, record.error) == ("127.0.0.1", MODEL, "")
    assert record.bytes == len(response.content)
    usage = response.json()["usage"]
    assert record.prompt_tokens == usage["prompt_tokens"] == len(PROMPT)
    assert record.completion_tokens == usage["completion_tokens"] == 5
    timing = server.engine.timing
    assert record.sequences == (SequenceRecord("length", len(PROMPT), 0, 5, 5, timing),)
    assert record.n == 1
    assert not record.stream
    assert not record.interventions
    assert record.began < record.began_work < record.first_token < record.ended


def test_several_answers_of_a_stream(server: Server, watcher: Watcher) -> None:
    server.engine.cached_tokens = 7
    response = say(server, n=3, stream=True, profile=None)
    record = watcher.one()
    assert record.stream
    assert record.n == 3
    assert [each.finish_reason for each in record.sequences] == ["stop"] * 3
    assert record.completion_tokens == 3 * (len(FakeEngine.answer) + 1)
    assert record.prompt_tokens == len(PROMPT)
    assert record.cached_tokens == 7
    assert record.bytes == len(response.content)


def test_interventions_their_profile_and_counters(
    watcher: Watcher, make_server: MakeServer
) -> None:
    engine = FakeEngine(timing=Timing(queued=0.0, prompt=1.0, decode=0.0, extra_passes={0: 3}))
    bundle = {"both": {"interventions": [{"method": "sgrs", "layers": [1, 2]}]}}
    server = make_server(engine, observers=[watcher], profiles=bundle)
    assert say(server, model=f"{MODEL}+both", n=2).status_code == 200
    record = watcher.one()
    assert (record.model, record.profile) == (f"{MODEL}+both", "both")
    assert record.interventions == ("sgrs",)
    assert not record.lost
    generated = len(FakeEngine.answer) + 1
    assert record.counters[0]["rejections"] == 2 * generated
    assert record.extra_passes == {0: 6}


def test_a_refusal_says_its_code(server: Server, watcher: Watcher) -> None:
    say(server, temperature=9)
    record = watcher.one()
    assert (record.status, record.error, record.n) == (400, "invalid_value", 0)
    server.http.get("/nowhere")
    record = watcher.one()
    assert (record.status, record.error, record.route) == (404, "not_found", "")
    server.http.get("/v1/models/other")
    assert watcher.one().route == "/v1/models/{model:path}"


def test_what_fails_inside_a_stream(server: Server, watcher: Watcher) -> None:
    server.engine.fail_after = 3
    say(server, stream=True)
    record = watcher.one()
    assert (record.status, record.error) == (200, "engine_failure")
    (sequence,) = record.sequences
    assert (sequence.finish_reason, sequence.completion_tokens) == ("error", 3)


def test_no_room_and_no_engine(server: Server, watcher: Watcher) -> None:
    server.engine.capacity = False
    assert say(server).status_code == 503
    record = watcher.one()
    assert (record.error, record.n, record.sequences) == ("server_overloaded", 0, ())
    server.engine.capacity, server.engine.alive = True, False
    assert say(server).status_code == 503
    assert (watcher.one().error, record.n) == ("engine_dead", 0)


def test_an_engine_that_dies_meanwhile(server: Server, watcher: Watcher) -> None:
    server.engine.delay = 0.05
    threading.Timer(0.2, lambda: setattr(server.engine, "alive", False)).start()
    say(server, stream=True)
    record = watcher.one()
    assert record.error == "engine_dead"
    assert [each.finish_reason for each in record.sequences] == ["error"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(server: Server, watcher: Watcher, stream: bool) -> None:
    server.engine.stall_after = 4
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(posted(chat_body(stream=stream)))
        wait_for(lambda: bool(server.engine.running))
        if stream:
            received = b""
            while received.count(b"data:") < 4:
                received += client.recv(65536)
    record = watcher.one()
    assert record.left
    assert record.status == (200 if stream else 499)
    (sequence,) = record.sequences
    assert sequence.finish_reason == "abort"
    assert sequence.timing is None
    assert sequence.completion_tokens == record.completion_tokens
    assert not stream or sequence.completion_tokens == 4


def test_nothing_of_the_content_is_kept(watcher: Watcher, make_server: MakeServer) -> None:
    server = make_server(FakeEngine(), observers=[watcher], api_keys=("sesame",))
    headers = {"authorization": "Bearer sesame"}
    body = chat_body(messages=[{"role": "user", "content": "Do not tell anybody."}])
    assert server.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    record = watcher.one()
    told = str({field.name: getattr(record, field.name) for field in fields(record)})
    assert record.key == "api-key-1"
    assert "anybody" not in told
    assert "sesame" not in told
    assert all("anybody" not in str(asdict(each)) for each in record.sequences)


def posted(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n"
    )
    return f"{head}content-type: application/json\r\n\r\n".encode() + data


def test_a_sequence_that_was_late_counts_as_one_that_was_given_up() -> None:
    """Its deadline passes here and in the engine at once, so either may be the first to say so."""
    request = GenerateRequest(request_id="a", tokens=(1,), sampling=SamplingParams(max_tokens=1))
    decoder: Any = None
    choice = Choice(0, request, decoder, StopStrings(()), frozenset())
    choice.note_unread(EngineOutput(request_id="a", finish_reason=FinishReason.LATE))
    assert (choice.done, choice.outcome) == (True, "abort")
    assert choice.outcome in REASONS


def test_an_end_that_nobody_read_is_known_all_the_same() -> None:
    request = GenerateRequest(request_id="a", tokens=(1,), sampling=SamplingParams(max_tokens=1))
    decoder: Any = None
    choice = Choice(0, request, decoder, StopStrings(()), frozenset())
    timing = Timing(queued=1.0)
    last = EngineOutput(request_id="a", finish_reason=FinishReason.STOP, tokens=(7, 8))
    choice.note_unread(replace(last, cached_tokens=5, timing=timing))
    assert (choice.outcome, choice.completion_tokens, choice.timing) == ("stop", 2, timing)
    assert choice.run.cached_tokens == 5
