"""Traces of attention that cannot be read are refused before anything runs."""

from typing import Any

import pytest
from msgspec.structs import replace

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.traces.data import AttentionReading, SinkReading, Trace
from saccade_server.models.family import serve
from saccade_testing import tiny
from saccade_testing.engine import REGISTRY, ask, core_with, make_request

VAR: dict[str, Any] = {"method": "var", "tau": 1.0, "layers": [1, 2]}


def reading(**fields: Any) -> AttentionReading:
    whole: dict[str, Any] = {"rows": (0, 9), "layers": (0, 3), "heads": (0, 1)}
    return AttentionReading(name="attention", **{**whole, **fields})


def traced(request: GenerateRequest, *readings: Any) -> GenerateRequest:
    return replace(request, trace=Trace(readings))


BAD = {
    "heads are not": reading(heads=(4,)),
    "no heads or no layers": reading(heads=()),
    "keys are no positions": reading(keys=(((3, 3),),)),
    "columns of their own": reading(keys=(((0, 3),),), each=True, recent=2),
}


@pytest.mark.parametrize("words", BAD)
def test_what_is_not_there_is_refused(words: str) -> None:
    output = core_with("llama").submit(traced(make_request(tiny.prompt("llama")), BAD[words]))
    assert output is not None
    assert words in (output.error or "")


def test_sinks_that_nobody_knows_are_refused() -> None:
    core = EngineCore(serve(tiny.build("llama")), EngineConfig(model="llama", cache_tokens=512))
    for wanted in (reading(sinks="drop"), SinkReading(name="s", rows=(0, 3), layers=(0,))):
        output = core.submit(traced(make_request(tiny.prompt("llama")), wanted))
        assert output is not None
        assert "this model's sinks show" in (output.error or "")


def test_a_plan_that_looks_for_other_sinks_is_refused_beside_a_trace_that_looks() -> None:
    prompt = tiny.prompt("llava")
    entry = {**VAR, "sink_dims": [4, 5]}
    request = ask(prompt, REGISTRY.parse([entry]), max_tokens=4)
    core = core_with("llava")
    output = core.submit(traced(request, reading(sinks="group")))
    assert output is not None
    assert "different dimensions" in (output.error or "")
    assert core.submit(traced(request, reading())) is None
