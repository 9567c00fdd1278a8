"""Detectors through HTTP: what is refused, what is asked of the engine, and what comes back."""

import asyncio
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade_server.engine.traces.data import EntropyReading, TokenShareReading
from saccade_testing.api.bodies import data_url, encode, image_part, parse_events
from saccade_testing.api.fakes import IMAGE, FakeEngine
from saccade_testing.api.scored import fake_score
from saccade_testing.api.server import MakeServer, Server

LIE = {"name": "anatomy_of_a_lie", "words": ["m", "x"]}
PICTURE = image_part(data_url(encode(Image.new("RGB", (8, 8)))))
SEEN = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What?"}]}]
PATH = "/v1/chat/completions"


def conflict(token: int) -> float:
    """Of the scripted engine's own log-probability of a token and its score."""
    own = -0.5 if token != ord("!") else -np.inf
    return float(np.log(np.exp(own) + 1e-9) - np.log(np.exp(fake_score(token)[0]) + 1e-9))


def detectors(answer: Any) -> list[list[dict[str, Any]]]:
    assert answer.status_code == 200, answer.text
    return [choice["detectors"] for choice in answer.json()["choices"]]


def ask(server: Server, *entries: Any, **fields: Any) -> Any:
    return server.chat(messages=SEEN, detectors=list(entries), **fields)


def test_an_answer_is_scored(server: Server):
    answer = ask(server, LIE, {**LIE, "threshold": 2})
    (found,) = detectors(answer)
    assert [each["name"] for each in found] == ["anatomy_of_a_lie"] * 2
    assert (found[0]["threshold"], found[1]["threshold"]) == (None, 2)
    shown = len(server.engine.answer)
    assert len(found[0]["values"]["conflicts"]) == shown
    # Row t has an entropy of its position here.
    start = server.engine.requests[0].tokens.index(IMAGE)
    assert start > 0
    first = len(server.engine.requests[0].tokens) - 1
    rows = np.arange(first, first + shown) / np.log(2)
    assert found[0]["values"]["decisions"] == pytest.approx(rows.tolist())
    conflicts = list(map(conflict, server.engine.answer.encode()))
    assert found[0]["values"]["conflicts"] == pytest.approx(conflicts, abs=1e-6)
    assert found[0]["score"] is found[0]["flagged"] is None
    assert found[0]["reason"] == "no density of right answers is named"
    assert answer.json()["choices"][0]["logprobs"] is None


def test_the_engine_is_asked_for_what_they_read_and_for_the_answer_without_images(server: Server):
    ask(server, LIE, LIE)
    own, blind = server.engine.requests
    assert own.trace is not None
    kinds = [type(reading) for reading in own.trace.readings]
    assert kinds == [EntropyReading, TokenShareReading] * 2
    assert len({reading.name for reading in own.trace.readings}) == 4
    assert own.trace.readings[1].groups == ((ord("M"), ord("X"), ord("m"), ord("x")),)
    assert own.sampling.logprobs == 0
    assert blind.images == ()
    assert blind.tokens == tuple(token for token in own.tokens if token != IMAGE)
    assert blind.given == tuple(server.engine.answer.encode())
    assert blind.sampling.max_tokens == len(blind.given)
    assert blind.cache_salt == own.cache_salt


def test_the_second_reading_stands_as_the_answer_does(make_server: MakeServer):
    server = make_server(api_keys=("key",))
    key = {"authorization": "Bearer key"}
    body = {"messages": SEEN, "detectors": [LIE], "priority": 3}
    assert server.http.post(PATH, json=body, headers=key).status_code == 200
    own, blind = server.engine.requests
    assert (own.owner, own.priority, own.origin.request_id != "") == ("api-key-1", 3, True)
    for name in ("owner", "priority", "deadline", "origin"):
        assert getattr(own, name) == getattr(blind, name), name


@pytest.mark.parametrize("trouble", ["capacity", "alive"])
def test_an_answer_without_its_second_reading_was_begun_all_the_same(
    trouble: str, make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    """A 503 would have a proxy ask another server for all of it again."""
    engine = FakeEngine()
    submit = engine.submit

    def failing(request: Any) -> Any:
        if request.request_id.endswith("-blind"):
            setattr(engine, trouble, False)
        return submit(request)

    monkeypatch.setattr(engine, "submit", failing)
    answer = ask(make_server(engine), LIE)
    assert (answer.status_code, answer.headers["retry-after"]) == (500, "1")


def test_a_stream_has_them_in_the_last_chunk_of_each_choice(server: Server):
    body = {"messages": SEEN, "detectors": [LIE], "n": 2, "logprobs": True}
    whole = detectors(server.http.post(PATH, json=body))
    *chunks, end = parse_events(server.http.post(PATH, json=body | {"stream": True}).text)
    assert end == "[DONE]"
    told = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [c["index"] for c in told if "detectors" in c] == [
        c["index"] for c in told if c["finish_reason"]
    ]
    found = sorted((c for c in told if "detectors" in c), key=lambda c: c["index"])
    assert [c["detectors"] for c in found] == whole


def test_a_trace_beside_them_is_what_it_is_without(server: Server):
    trace = {"entropy": True}
    alone = server.chat(messages=SEEN, trace=trace).json()["choices"][0]["trace"]
    beside = ask(server, LIE, trace=trace).json()["choices"][0]
    assert beside["trace"] == alone
    assert len(beside["detectors"]) == 1


def test_without_an_image_there_is_no_score_and_nothing_is_read(server: Server):
    (found,) = detectors(server.chat(detectors=[LIE, {"name": "svar", "threshold": 1}]))
    assert [each["reason"] for each in found] == ["the prompt has no image"] * 2
    assert [each["flagged"] for each in found] == [None, None]
    (request,) = server.engine.requests
    assert request.trace is None
    assert request.sampling.logprobs is None


def test_plain_completions_take_detectors_of_text(server: Server):
    body = {"prompt": ["ab", "abc"], "detectors": [LIE], "max_tokens": 2}
    found = detectors(server.http.post("/v1/completions", json=body))
    assert [each[0]["reason"] for each in found] == ["the prompt has no image"] * 2


def test_a_stop_text_cuts_their_tokens_too(server: Server):
    stop = server.engine.answer[3:5]
    (found,) = detectors(ask(server, LIE, stop=[stop]))
    assert len(found[0]["values"]["conflicts"]) == 5
    assert len(server.engine.requests[1].given) == 5


@pytest.mark.parametrize("path", [PATH, "/v1/completions"])
def test_mistakes_have_a_path(server: Server, path):
    own = {"messages": SEEN} if path == PATH else {"prompt": "Hi"}
    wrong = [
        ("svar", "detectors"),
        ([{"name": "svra"}], "detectors[0].name"),
        ([LIE, {"name": "svar", "layer": 3}], "detectors[1].layer"),
        ([{"name": "svar", "layers": [1, 4]}], "detectors[0].layers[1]"),
        ([LIE | {"artifact": "sha256:1"}], "detectors[0].artifact"),
    ]
    for value, param in wrong:
        answer = server.http.post(path, json=own | {"detectors": value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not server.engine.requests


def test_names_that_resemble_the_field_are_refused_with_a_hint(server: Server):
    for name in ("detector", "Detections"):
        answer = server.chat(**{name: [LIE]})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == name
        assert 'the top-level field "detectors"' in answer.json()["error"]["message"]


def test_a_density_that_is_not_there_is_named(server: Server):
    answer = ask(server, LIE, {**LIE, "artifact": "sha256:" + "0" * 64})
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "detectors[1].artifact"


def test_methods_that_act_where_a_token_is_drawn_exclude_a_second_reading(server: Server):
    answer = ask(server, LIE, interventions=[{"method": "vcd"}])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "detectors[0]"
    (found,) = detectors(ask(server, LIE, interventions=[{"method": "vaf"}]))
    assert found[0]["values"]["conflict"]
    own, blind = server.engine.requests
    assert own.plan is not None
    assert blind.plan is not None


def test_sinks_in_other_dimensions_than_a_method_s_are_refused(server: Server):
    var = {"method": "var", "sink_dims": [1]}
    answer = ask(server, LIE, {"name": "sinks"}, interventions=[var])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "detectors[1]"
    assert detectors(
        ask(server, {"name": "sinks"}, interventions=[{"method": "var"}], max_tokens=4)
    )


def test_more_than_the_server_may_trace_is_refused(make_server):
    server = make_server(max_trace_bytes=64)
    answer = ask(server, LIE, max_tokens=9)
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "detectors[0]"
    assert detectors(ask(server, LIE, max_tokens=8))


def test_the_second_reading_ends_with_the_request_s_time(make_server):
    """The scripted engine gives a given answer at once, unless it is stalled before."""
    server = make_server(request_timeout=0.5)
    submit = server.engine.submit

    async def never(request):
        if request.given:
            await asyncio.sleep(60)
        async for output in submit(request):
            yield output

    server.engine.submit = never
    answer = ask(server, LIE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")


def test_what_the_engine_leaves_out_is_no_answer(server: Server):
    server.engine.loses_traces = True
    assert ask(server, LIE).status_code == 500
