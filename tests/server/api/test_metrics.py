"""/metrics: numbers that equal what requests really did, for whoever may read them."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from saccade_server.api.layers.record import Record
from saccade_server.api.metrics import names
from saccade_server.api.metrics import route as metrics_route
from saccade_server.api.metrics.tally import RequestTally
from saccade_server.engine.request import EngineStats
from saccade_server.engine.timing import Timing
from saccade_testing.api.bodies import MODEL, chat_body, data_url, encode, image_messages
from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.scraped import Counting, Scrape, scrape
from saccade_testing.api.server import MakeServer, Server, start_server, wait_for

ANSWER = len(FakeEngine.answer) + 1
SGRS = {"method": "sgrs", "layers": [1, 2]}
VAR = {"method": "var"}
OPENED = {"accept": "application/openmetrics-text; version=1.0.0"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    profiles = {"look": {"interventions": [VAR]}}
    server = start_server(Counting(), profiles=profiles, access_log=False)
    yield server
    server.stop()


@pytest.fixture
def server(shared: Server) -> Server:
    shared.renew()
    return shared


class Change:
    """What requests added to the numbers of a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = scrape(server)

    def __call__(self) -> Scrape:
        """The difference; a request is counted when all of its answer was sent."""
        now = scrape(self._server)
        return Scrape({key: value - self._before.get(key, 0.0) for key, value in now.items()})

    def after(self, requests: int) -> Scrape:
        def ended() -> bool:
            routes = self().by("http_requests_total", "route")
            return sum(routes.values()) - routes["/metrics"] >= requests

        wait_for(ended)
        return self()


def with_image(**fields: Any) -> dict[str, Any]:
    image = data_url(encode(Image.new("RGB", (8, 8))))
    return {"messages": image_messages(image), **fields}


def test_both_formats_say_the_same(server: Server) -> None:
    plain, opened = scrape(server), scrape(server, **OPENED)
    assert {name for name, _ in plain} - {name for name, _ in opened} <= {
        name for name, _ in plain if name.endswith("_created")
    }
    assert opened.of("num_requests_waiting") == plain.of("num_requests_waiting") == 2


def test_what_the_engine_says(server: Server) -> None:
    found = scrape(server)
    assert found.of("kv_cache_usage_perc") == 0.25
    assert found.of("prefix_cache_queries_total") == 64
    assert found.of("prefix_cache_hits_total") == 16
    assert found.of("num_preemptions_total") == 1
    assert found.of("prompt_tokens_total") == 50
    assert found.of("generation_tokens_total") == 30
    assert found.of("engine_alive") == found.of("engine_answered") == 1
    assert found.by("steps_total", "form") == {"mixed": 4, "captured": 5}
    labels = {"form": "captured", "size": "8", "classes": "2", "sites": "residuals", "search": ""}
    assert found.of("steps_total", **labels) == 5
    assert found.of("stage_runs_total", stage="greedy", size="2") == 3
    assert found.of("inter_token_latency_seconds_count") == 3
    assert found.of("inter_token_latency_seconds_bucket", le="0.001") == 0
    assert found.of("inter_token_latency_seconds_bucket", le="0.0025") == 3
    assert found.of("inter_token_latency_seconds_bucket", le="+Inf") == 3
    assert found.of("inter_token_latency_seconds_sum") == pytest.approx(0.006)
    assert found.of("iteration_tokens_total_bucket", le="16.0") == 1
    assert found.of("cache_config_info", block_size="64", num_gpu_blocks="64") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer(server: Server, stream: bool) -> None:
    change = Change(server)
    server.engine.timing = Timing(queued=0.4, prompt=0.25, decode=2.0)
    assert server.chat(n=3, stream=stream, max_tokens=5).status_code == 200
    found = change.after(1)
    route = {"route": "/v1/chat/completions", "method": "POST", "status": "200"}
    assert found.of("http_requests_total", **route) == 1
    assert found.by("request_success_total", "finished_reason") == {"length": 3}
    for name in ("request_params_n", "e2e_request_latency_seconds", "time_to_first_token_seconds"):
        assert found.of(f"{name}_count") == 1
    assert found.of("request_params_n_sum") == 3
    assert found.of("request_generation_tokens_sum") == 15
    assert found.of("request_params_max_tokens_sum") == 15
    assert found.of("request_queue_time_seconds_sum") == pytest.approx(1.2)
    assert found.of("request_queue_time_seconds_bucket", le="0.5") == 3
    assert found.of("request_queue_time_seconds_bucket", le="0.3") == 0
    assert found.of("request_prefill_time_seconds_sum") == pytest.approx(0.75)
    assert found.of("request_decode_time_seconds_sum") == pytest.approx(6)
    assert found.of("request_inference_time_seconds_sum") == pytest.approx(6.75)
    assert not found.by("http_errors_total", "code")


def test_stop_texts_are_no_aborts(server: Server) -> None:
    change = Change(server)
    assert server.chat(stop=["world"]).json()["choices"][0]["finish_reason"] == "stop"
    found = change.after(1)
    assert found.by("request_success_total", "finished_reason") == {"stop": 1}
    assert found.of("request_queue_time_seconds_count") == 1


def test_methods_count_by_what_receipts_say(server: Server) -> None:
    change = Change(server)
    server.engine.timing = Timing(queued=0, prompt=1, decode=1, extra_passes={1: 7})
    response = server.chat(interventions=[SGRS, {"method": "adaptvis"}], **with_image(n=2))
    assert response.status_code == 200, response.text
    found = change.after(1)
    applied = response.json()["interventions_applied"]
    assert found.by("intervention_requests_total", "method") == {"sgrs": 1, "adaptvis": 1}
    tokens = response.json()["usage"]["completion_tokens"]
    assert found.by("intervention_tokens_total", "method") == {"sgrs": tokens, "adaptvis": tokens}
    rejected = applied[0]["counters"]["rejections"]
    assert rejected == 2 * ANSWER
    assert found.by("intervention_rejections_total", "method")["sgrs"] == rejected
    assert found.by("intervention_extra_passes_total", "method") == {"adaptvis": 14}
    assert not found.by("intervention_lost_total", "method")


def test_counters_of_methods_by_their_place() -> None:
    tally = RequestTally(longest=100)
    counters = {1: {"rejections": 5, "fallbacks": 2, "draws": 9}}
    tally.ended(Record("a", n=1, interventions=("vcd", "sgrs"), counters=counters))
    assert tally.counts[names.REJECTIONS] == {("vcd",): 0, ("sgrs",): 5}
    assert tally.counts[names.FALLBACKS] == {("vcd",): 0, ("sgrs",): 2}


def test_profiles(server: Server) -> None:
    change = Change(server)
    server.chat(model=f"{MODEL}+look", **with_image())
    server.chat(**with_image())
    found = change.after(2)
    assert found.by("profile_requests_total", "profile") == {"look": 1}
    assert found.by("intervention_requests_total", "method") == {"var": 1}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"interventions": [VAR]}, "var", "intervention_requires_image"),
    ({"interventions": [{"method": "pai"}, {"method": "no"}]}, "unknown", "_unknown_method"),
    ({"interventions": [{"method": "pai", "tau": 3}]}, "pai", "intervention_unknown_field"),
    ({"interventions": [SGRS | {"layers": [99]}]}, "sgrs", "intervention_layer_out_of_range"),
    ({"vllm_xargs": {"interventions": '[{"method": "pai", "x": 1}]'}}, "pai", "_unknown_field"),
]


@pytest.mark.parametrize(("fields", "method", "code"), REFUSED)
def test_refusals_by_method(server: Server, fields: Any, method: str, code: str) -> None:
    change = Change(server)
    response = server.chat(**fields)
    assert response.status_code == 400
    found = change.after(1)
    ((blamed, refused),) = found.by("intervention_refusals_total", "method").items()
    assert (blamed, refused) == (method, 1)
    ((told, _),) = found.by("intervention_refusals_total", "code").items()
    assert told.endswith(code)
    assert found.by("http_errors_total", "code") == {told: 1}
    assert not found.by("intervention_requests_total", "method")
    assert not found.by("request_success_total", "finished_reason")


def test_who_is_refused_before_routing_asked_for_a_route(server: Server) -> None:
    change = Change(server)
    answer = server.http.post("/v1/chat/completions", content="x", headers={"content-type": "a/b"})
    assert answer.status_code == 415
    found = change.after(1)
    assert found.by("http_errors_total", "route")["/v1/chat/completions"] == 1
    assert found.by("http_requests_total", "route")["/v1/chat/completions"] == 1


def test_other_refusals_are_no_methods_fault(server: Server) -> None:
    change = Change(server)
    server.chat(interventions=[SGRS], temperature=9)
    server.http.get("/nothing/here")
    server.http.request("BREW", "/v1/chat/completions")
    found = change.after(3)
    codes = {"invalid_value": 1, "not_found": 1, "method_not_allowed": 1}
    assert found.by("http_errors_total", "code") == codes
    assert found.by("http_requests_total", "method")["other"] == 1
    assert found.by("http_requests_total", "route")["other"] == 1
    assert not found.by("intervention_refusals_total", "method")


def test_failures_and_ends_that_nobody_wanted(server: Server) -> None:
    change = Change(server)
    server.engine.fail_after = 3
    server.chat(stream=True, n=2)
    server.engine.fail_after, server.engine.capacity = None, False
    server.chat()
    found = change.after(2)
    assert found.by("http_errors_total", "code") == {"engine_failure": 1, "server_overloaded": 1}
    assert found.by("http_errors_total", "status") == {"200": 1, "503": 1}
    reasons = found.by("request_success_total", "finished_reason")
    assert sum(reasons.values()) == 2
    assert reasons["error"] >= 1


def test_numbers_that_overflow_are_their_methods_fault(server: Server) -> None:
    change = Change(server)
    server.engine.fail_after, server.engine.diverges = 2, True
    server.chat(interventions=[VAR], stream=True, **with_image())
    found = change.after(1)
    assert found.by("intervention_refusals_total", "method") == {"var": 1}
    assert found.by("intervention_refusals_total", "code") == {"intervention_diverged": 1}


def test_clients_that_leave(server: Server) -> None:
    change = Change(server)
    server.engine.stall_after = 2
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        data = json.dumps(chat_body(n=2)).encode()
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data
        )
        wait_for(lambda: len(server.engine.running) == 2)
        time.sleep(0.05)
    found = change.after(1)
    assert found.by("http_disconnects_total", "route") == {"/v1/chat/completions": 1}
    assert found.by("request_success_total", "finished_reason") == {"abort": 2}
    assert found.by("http_requests_total", "status")["499"] == 1
    assert found.of("request_generation_tokens_sum") == 4
    assert found.of("request_queue_time_seconds_count") == 0


def test_lost_interventions(make_server: MakeServer) -> None:
    server = make_server(Counting(forgets=True))
    assert server.chat(interventions=[VAR], n=2, **with_image()).status_code == 200
    wait_for(lambda: scrape(server).by("intervention_lost_total", "method") == {"var": 2})
    server.app.state.services.noops.clear()


def test_connections_that_never_became_requests(server: Server) -> None:
    before = scrape(server).of("connections_refused_total", code="invalid_http")
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        client.recv(4096)
    assert scrape(server).of("connections_refused_total", code="invalid_http") == before + 1


def test_a_key_is_needed_and_counts_by_its_name(make_server: MakeServer) -> None:
    server = make_server(Counting(), api_keys=("one", "two"))
    assert server.http.get("/metrics").status_code == 401
    key = {"authorization": "Bearer two"}
    body = chat_body(max_tokens=4)
    assert server.http.post("/v1/chat/completions", json=body, headers=key).status_code == 200
    wait_for(
        lambda: (
            scrape(server, **key).of("key_tokens_total", key="api-key-2", kind="completion") == 4
        )
    )
    text = server.http.get("/metrics", headers=key).text
    assert '"two"' not in text


def test_open_metrics_need_none_and_answer_to_any_name(make_server: MakeServer) -> None:
    server = make_server(Counting(), api_keys=("one",), open_metrics=True)
    assert scrape(server).of("engine_alive") == 1
    assert server.http.get("/v1/models").status_code == 401
    server = make_server(Counting(), open_metrics=True)
    assert scrape(server, host="prometheus.example").of("engine_alive") == 1
    strict = make_server(Counting())
    assert strict.http.get("/metrics", headers={"host": "elsewhere.example"}).status_code == 421


def test_it_answers_when_nothing_else_does(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Counting):
        async def stats(self) -> EngineStats:
            await asyncio.sleep(60)
            raise AssertionError

    monkeypatch.setattr(metrics_route, "ENGINE_SECONDS", 0.05)
    server = make_server(Late(), max_requests=0)
    assert server.chat().status_code == 503
    began = time.monotonic()
    found = scrape(server)
    assert time.monotonic() - began < 2
    assert (found.of("engine_alive"), found.of("engine_answered")) == (1, 0)
    assert not any(name.startswith("saccade:num_requests") for name, _ in found)
    assert found.of("http_requests_in_flight") == 0
    assert found.by("http_errors_total", "code") == {"server_overloaded": 1}
    server.app.state.lifecycle.drain()
    assert scrape(server).of("draining") == 1
    server.engine.alive = False
    assert scrape(server).of("engine_alive") == 0
