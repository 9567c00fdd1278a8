"""Spans of requests, as a real collector gets them."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from saccade_server.api.spans.sender import Sender
from saccade_testing.api.bodies import MODEL
from saccade_testing.api.collector import Collector, attributes
from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.logged import access_entries
from saccade_testing.api.server import MakeServer, Server, wait_for

PASTA = {"method": "pasta", "spans": [[0, 2]], "layers": [1], "alpha": 0.5}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "what is in my photo"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def server(collector: Collector, make_server: MakeServer) -> Server:
    profiles = {"p": {"interventions": [PASTA]}}
    return make_server(
        FakeEngine(cached_tokens=4),
        profiles=profiles,
        otlp_traces_endpoint=collector.url + "/v1/traces",
    )


def flushed(server: Server) -> None:
    server.app.state.services.spans.close()


def ask(server: Server, sampled: bool = True, **fields: Any) -> Any:
    parent = f"00-{TRACE}-{SPAN}-{int(sampled):02x}"
    headers = {"traceparent": parent, "tracestate": "a=1", "authorization": "Bearer hidden"}
    content = [{"role": "user", "content": SECRET}]
    body = {"model": MODEL, "messages": content, "max_tokens": 5} | fields
    return server.http.post("/v1/chat/completions?x=hidden", json=body, headers=headers)


def test_a_request_and_what_is_within_it(server: Server, collector: Collector) -> None:
    response = ask(server, intervention_profile="p", n=2, guided_regex=".*")
    flushed(server)
    assert collector.posts == ["/v1/traces"]
    (root,) = collector.named("POST /v1/chat/completions")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, SPAN)
    assert (root.kind, root.trace_state) == (2, "a=1")
    said = attributes(root)
    assert said["http.request.method"] == "POST"
    assert said["http.route"] == said["url.path"] == "/v1/chat/completions"
    assert said["http.response.status_code"] == 200
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == MODEL
    assert said["gen_ai.request.choice.count"] == 2
    assert said["gen_ai.request.max_tokens"] == 5
    usage = response.json()["usage"]
    assert said["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert said["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 10
    assert said["gen_ai.usage.cache_read.input_tokens"] == 4
    assert said["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert said["saccade.profile"] == "p"
    assert said["saccade.interventions"] == ["pasta"]
    assert (said["saccade.grammar"], said["saccade.forced_tokens"]) == ("regex", 4)
    assert said["saccade.request_id"] == response.headers["x-request-id"]
    within = [span for span in collector.spans if span is not root]
    names = sorted(span.name for span in within)
    assert names == ["decode", "decode", "prepare", "prompt", "prompt", "queue", "queue"]
    for span in within:
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
        assert root.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
    assert abs(time.time() - root.end_time_unix_nano / 1e9) < 60
    assert collector.resources[0]["service.name"] == "saccade"
    everything = str(collector.spans)
    assert SECRET not in everything
    assert "hidden" not in everything


def test_times_are_those_of_the_engine(server: Server, collector: Collector) -> None:
    ask(server)
    flushed(server)
    timing, seconds = server.engine.timing, {}
    for span in collector.spans:
        seconds[span.name] = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    begins = {span.name: span.start_time_unix_nano for span in collector.spans}
    ends = {span.name: span.end_time_unix_nano for span in collector.spans}
    assert 0 <= begins["queue"] - ends["prepare"] < 1e9
    assert begins["prompt"] == ends["queue"]
    # The scripted engine makes its times up; they never reach beyond the request.
    assert seconds["queue"] <= timing.queued + 1e-6
    assert ends["decode"] <= ends["POST /v1/chat/completions"]


def test_each_sequence_begins_when_it_went_to_the_engine(
    server: Server, collector: Collector
) -> None:
    """Others of a score wait for the first, and find its prompt."""
    server.engine.delay = 0.02
    body = {"model": MODEL, "prompt": "Hi", "continuations": ["yes", "no"]}
    response = server.http.post("/v1/score", json=body)
    assert response.status_code == 200, response.text
    flushed(server)
    first, second = sorted(collector.named("queue"), key=lambda span: span.start_time_unix_nano)
    assert attributes(first)["saccade.sequence"] == 0
    assert attributes(second)["saccade.sequence"] == 1
    assert second.start_time_unix_nano > first.start_time_unix_nano


def test_a_trace_that_is_not_sampled_stays_so(
    server: Server, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "saccade.access")
    ask(server, sampled=False)
    flushed(server)
    assert not collector.spans
    wait_for(lambda: bool(access_entries(caplog)))
    assert access_entries(caplog)[0]["trace_id"] == TRACE
    (request,) = server.engine.requests
    assert request.origin.traceparent.startswith(f"00-{TRACE}-")
    assert request.origin.traceparent.endswith("-00")


def test_the_context_goes_on(
    server: Server, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "saccade.access")
    response = ask(server)
    flushed(server)
    (root,) = collector.named("POST /v1/chat/completions")
    (request,) = server.engine.requests
    assert request.origin.traceparent == f"00-{TRACE}-{root.span_id.hex()}-01"
    assert request.origin.request_id == response.headers["x-request-id"]
    assert request.origin.fields == {
        "request_id": response.headers["x-request-id"],
        "trace_id": TRACE,
    }
    wait_for(lambda: bool(access_entries(caplog)))
    assert access_entries(caplog)[0]["span_id"] == root.span_id.hex()


def test_without_a_context_a_trace_begins(server: Server, collector: Collector) -> None:
    for _ in range(2):
        server.chat()
    flushed(server)
    roots = collector.named("POST /v1/chat/completions")
    assert len({root.trace_id for root in roots}) == 2
    assert not any(root.parent_span_id for root in roots)


def test_what_fails_says_so(server: Server, collector: Collector) -> None:
    server.chat(model="other")
    server.engine.fail_after = 1
    server.chat()
    server.events()
    server.http.get("/nowhere")
    flushed(server)
    roots = [span for span in collector.spans if not span.parent_span_id]
    told = [(attributes(each).get("error.type"), each.status.code) for each in roots]
    assert sorted(map(str, told)) == sorted(
        map(
            str,
            [
                ("model_not_found", 0),  # the client's fault is no error of ours
                ("engine_failure", 2),
                ("engine_failure", 2),
                ("not_found", 0),
            ],
        )
    )
    assert all(each.name == "GET" for each in roots if "nowhere" in str(each))


def test_probes_have_no_spans(server: Server, collector: Collector) -> None:
    for path in ("/live", "/ready", "/load", "/v1/models"):
        server.http.get(path)
    flushed(server)
    assert not collector.spans


@pytest.mark.parametrize("trouble", ["gone", "hangs", "refuses"])
def test_a_collector_in_trouble_costs_no_request(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")
    collector = Collector(400 if trouble == "refuses" else 200, hangs=trouble == "hangs")
    if trouble == "gone":
        collector.close()
    try:
        server = make_server(FakeEngine(), otlp_traces_endpoint=collector.url + "/v1/traces")
        seconds = []
        for _ in range(20):  # five spans each: many times what the queue holds
            began = time.monotonic()
            assert server.chat(max_tokens=2).status_code == 200
            seconds.append(time.monotonic() - began)
        # One that waited for the collector would take its second; a busy machine may delay a few.
        assert sorted(seconds)[10] < 0.5, seconds
        began = time.monotonic()
        server.app.state.services.spans.close(0.2)
        assert time.monotonic() - began < 2
    finally:
        if trouble != "gone":
            collector.close()


def test_what_is_left_leaves_at_the_end(collector: Collector, make_server: MakeServer) -> None:
    server = make_server(FakeEngine(), otlp_traces_endpoint=collector.url + "/v1/traces")
    server.chat()
    assert not collector.spans  # they are sent every few seconds
    server.stop()
    assert collector.named("decode")


def test_the_resource_is_the_operators(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    sender = Sender(collector.url + "/v1/traces")
    sender.tracer.start_span("x").end()
    sender.close()
    (resource,) = collector.resources
    assert resource["service.name"] == "mine"
    assert resource["deployment.environment.name"] == "test"
