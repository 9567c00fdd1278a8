"""Numbers of /metrics of a server with a real engine, against what its answers say."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import saccade_server.demo
from saccade_server.cli import FOR_ONE_ANSWER
from saccade_server.config import DEMO_NAME, engine_config
from saccade_server.inprocess import open_server

IMAGE = Path(saccade_server.demo.__file__).parent / "samples" / "absent-1.png"
SGRS = {"method": "sgrs", "alpha": 1.2, "warmup": 1}
BODIES: list[dict[str, Any]] = [
    {"interventions": [{"method": "pai"}, {"method": "vcd"}], "n": 2},
    {"interventions": [SGRS], "n": 2, "temperature": 1.0, "seed": 3},
    {"interventions": [{"method": "adaptvis"}]},
    {"interventions": [{"method": "vhr"}]},
    {"interventions": [], "stop": ["a"]},
]
"""Branches of drawn tokens, candidates rejected, a row that runs twice, a branch that measures."""


def samples(text: str) -> dict[str, dict[str, float]]:
    """Values by one label, or "" without: name -> label's value -> sum."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            by = {k: v for k, v in sample.labels.items() if k in ("method", "finished_reason")}
            key = next(iter(by.values()), "")
            own = found.setdefault(sample.name.removeprefix("saccade:"), {})
            own[key] = own.get(key, 0) + sample.value
    return found


async def everything() -> tuple[list[Any], dict[str, dict[str, float]], dict[str, Any]]:
    config = engine_config(device="cpu", **{**FOR_ONE_ANSWER, "max_num_seqs": 16})
    image = base64.b64encode(IMAGE.read_bytes()).decode()
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    content = [url, {"type": "text", "text": "Describe the image."}]
    shown = {"messages": [{"role": "user", "content": content}], "max_tokens": 12}
    async with open_server(config, DEMO_NAME) as client:

        async def ask(body: dict[str, Any]) -> Any:
            sent = {"temperature": 0.0, **shown, **body}
            answer = await client.post("/v1/chat/completions", json=sent)
            assert answer.status_code == 200, answer.text
            return answer.json()

        answers = list(await asyncio.gather(*map(ask, BODIES)))
        found = samples((await client.get("/metrics")).text)
        return answers, found, (await client.get("/load")).json()


@pytest.fixture(scope="module")
def told() -> tuple[list[Any], dict[str, dict[str, float]], dict[str, Any]]:
    return asyncio.run(everything())


def test_tokens_and_sequences(told: Any) -> None:
    answers, found, load = told
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    reasons = [choice["finish_reason"] for answer in answers for choice in answer["choices"]]
    counted = {name: value for name, value in found["request_success_total"].items() if value}
    assert counted == {name: reasons.count(name) for name in set(reasons)}
    assert found["request_generation_tokens_sum"][""] == tokens
    assert found["intervention_tokens_total"]["vcd"] == answers[0]["usage"]["completion_tokens"]
    assert found["request_queue_time_seconds_count"][""] == len(reasons)
    assert found["time_to_first_token_seconds_count"][""] == len(answers)
    assert found["generation_tokens_total"][""] == load["generated_tokens"] >= tokens
    assert found["num_requests_running"][""] == found["num_requests_waiting"][""] == 0
    steps = sum(found["steps_total"].values())
    assert steps == load["steps"] == found["iteration_tokens_total_count"][""]
    firsts = len(reasons)
    between = found["inter_token_latency_seconds_count"][""]
    assert between == load["generated_tokens"] - firsts


def test_times_are_of_these_requests(told: Any) -> None:
    _, found, _ = told
    parts = [found[f"request_{name}_time_seconds_sum"][""] for name in ("prefill", "decode")]
    assert all(part > 0 for part in parts)
    assert found["request_inference_time_seconds_sum"][""] == pytest.approx(sum(parts))
    assert found["inter_token_latency_seconds_sum"][""] >= 0.99 * parts[1]


def test_what_methods_did(told: Any) -> None:
    answers, found, _ = told
    requests = {"pai": 1, "vcd": 1, "sgrs": 1, "adaptvis": 1, "vhr": 1}
    assert found["intervention_requests_total"] == requests
    (sgrs,) = answers[1]["interventions_applied"]
    assert sgrs["counters"]["rejections"] > 0
    assert found["intervention_rejections_total"]["sgrs"] == sgrs["counters"]["rejections"]
    fallbacks = sgrs["counters"].get("fallbacks", 0)
    assert found["intervention_fallbacks_total"]["sgrs"] == fallbacks
    both = answers[0]["usage"]["completion_tokens"]
    extra = {name: n for name, n in found["intervention_extra_passes_total"].items() if n}
    assert extra == {"vcd": both, "adaptvis": 1, "vhr": 1}
    assert not any(found["intervention_lost_total"].values())
