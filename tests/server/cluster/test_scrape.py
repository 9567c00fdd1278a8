"""/metrics of a cluster: every replica's numbers, apart, and how many replicas said none."""

import asyncio
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from saccade_server.api.metrics import names
from saccade_server.api.metrics.exposition import Exposition, Family, distribution, family
from saccade_server.cluster.scrape import merged
from saccade_server.engine.counts import BETWEEN_TOKENS, Histogram

OPEN = "application/openmetrics-text; version=1.0.0"


def said(running: int, methods: dict[str, int]) -> list[Family]:
    """What a replica may say: of each kind one."""
    between = Histogram.of(BETWEEN_TOKENS)
    between.observe(0.002, running)
    return [
        family(names.RUNNING, "m", {(): running}),
        family(names.METHOD_REQUESTS, "m", {(name,): n for name, n in methods.items()}),
        distribution(names.BETWEEN, "m", between),
    ]


def read(families: list[Family], accept: str) -> dict[tuple[str, frozenset[tuple[str, str]]], Any]:
    text = Exposition(tuple(families)).written(accept)[0].decode()
    parse = open_metrics if accept == OPEN else prometheus
    found: dict[Any, float] = {}
    for each in parse(text):
        assert each.documentation
        for sample in each.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    assert text.count("# TYPE saccade:num_requests_running ") == 1
    return found


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"saccade:{name}", frozenset({"model_name": "m", **labels}.items())


@pytest.mark.parametrize("accept", ["", OPEN])
def test_samples_are_told_apart_by_their_replica(accept: str) -> None:
    a, b = said(3, {"vcd": 5}), said(4, {"vcd": 7, "var": 1})
    found = read(merged({"b": b, "a": a}, "m", silent=2), accept)
    assert found[key("num_requests_running", replica="a")] == 3
    assert found[key("num_requests_running", replica="b")] == 4
    assert found[key("intervention_requests_total", replica="a", method="vcd")] == 5
    assert found[key("intervention_requests_total", replica="b", method="vcd")] == 7
    assert found[key("intervention_requests_total", replica="b", method="var")] == 1
    assert found[key("inter_token_latency_seconds_count", replica="a")] == 3
    assert found[key("inter_token_latency_seconds_bucket", replica="b", le="0.001")] == 0
    assert found[key("inter_token_latency_seconds_bucket", replica="b", le="+Inf")] == 4
    assert found[key("replicas", state="answered")] == 2
    assert found[key("replicas", state="silent")] == 2


def test_what_only_one_replica_says_is_there() -> None:
    found = read(merged({"a": said(1, {}), "b": said(2, {})[:1]}, "m"), "")
    assert key("inter_token_latency_seconds_count", replica="a") in found
    assert key("inter_token_latency_seconds_count", replica="b") not in found
    assert found[key("replicas", state="silent")] == 0


def test_what_was_merged_is_left_as_it_was() -> None:
    own = said(3, {"vcd": 5})
    before = [list(each.samples) for each in own]
    merged({"a": own}, "m")
    assert [each.samples for each in own] == before


class Result:
    """One replica's answer: after a time, or never, or an error."""

    def __init__(self, value: Any = None, *, after: float = 0.0) -> None:
        self.value = value
        self.after = after

    async def get_async(self) -> Any:
        await asyncio.sleep(self.after)
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Handle:
    """Ray's, with the replicas that there are."""

    def __init__(self, *results: Result, error: Exception | None = None, after: float = 0) -> None:
        self.results = results
        self.error = error
        self.after = after
        self.called = ""

    def broadcast(self, method: str) -> "Handle":
        self.called = method
        return self

    async def _fetch_replica_results_async(self) -> list[Result]:
        await asyncio.sleep(self.after)
        if self.error:
            raise self.error
        return list(self.results)


@pytest.mark.parametrize(
    ("handle", "found", "silent"),
    [
        (Handle(Result("a"), Result("b", after=0.05)), {"a", "b"}, 0),
        (Handle(Result("a"), Result("b", after=60), Result("c")), {"a", "c"}, 1),
        (Handle(Result("a"), Result(RuntimeError("dead"))), {"a"}, 1),
        (Handle(error=RuntimeError("no replicas")), set(), 1),
        (Handle(Result("a"), after=60), set(), 1),
    ],
    ids=["all", "one hangs", "one fails", "nobody to ask", "Ray hangs"],
)
def test_whoever_answers_in_time_is_heard(handle: Handle, found: set[str], silent: int) -> None:
    pytest.importorskip("ray.serve", reason="needs the extra ray")
    from saccade_server.cluster.everyone import ask_everyone

    async def ask() -> tuple[Any, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        return await ask_everyone(handle, "families", 0.3), loop.time() - began  # type: ignore[arg-type]

    answers, seconds = asyncio.run(ask())
    assert handle.called == "families"
    assert (set(answers.found), answers.silent) == (found, silent)
    assert seconds < 5


def test_what_is_used_of_ray_is_there() -> None:
    """The seam beneath its interface, of the version that is pinned."""
    pytest.importorskip("ray.serve", reason="needs the extra ray")
    from ray.serve._private.replica_result import ReplicaResult
    from ray.serve.handle import DeploymentBroadcastResponse, DeploymentHandle

    assert callable(DeploymentHandle.broadcast)
    assert asyncio.iscoroutinefunction(DeploymentBroadcastResponse._fetch_replica_results_async)
    assert asyncio.iscoroutinefunction(ReplicaResult.get_async)
