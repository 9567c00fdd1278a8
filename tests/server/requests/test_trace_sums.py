"""Sums over rows of an answer: of all rows that it has, and no others."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saccade_interventions.context import Prompt
from saccade_interventions.model_facts import ModelFacts
from saccade_server.requests.errors import TooMuch
from saccade_server.requests.traces.arrays import TraceArray
from saccade_server.requests.traces.joining import TraceLostError
from saccade_server.requests.traces.options import TraceOptions
from saccade_server.requests.traces.resolve import TracePlan, resolve
from saccade_server.requests.traces.scope import Scope
from saccade_testing.api import traced

MODEL = ModelFacts(layers=3, heads=4, kv_heads=2, head_dim=4, hidden_size=16, accepts_images=True)
PROMPT = Prompt(length=25)
TOKENS = 6


def scope(prompt: Prompt, may_stop: bool = False) -> Scope:
    return Scope(MODEL, prompt, TOKENS, may_stop=may_stop)


def plan(where: Scope | None = None, **kinds: Any) -> TracePlan:
    return resolve(TraceOptions.model_validate(kinds), where or scope(PROMPT))


def filled(found: TracePlan, generated: int) -> TraceArray:
    """What comes of an answer of so many tokens."""
    request: Any = SimpleNamespace(trace=found.trace)
    joined = found.collect()
    joined.add(traced.pieces(request, 0, PROMPT.length - 1 + generated, last=True))
    return joined.arrays(generated)["columns"]


def test_sums_over_rows_that_an_answer_does_not_reach_are_zero():
    found = filled(plan(columns={"layers": [1], "rows": {"answer": [2, 4]}}), 2)
    assert found.values.shape == (1, 25)
    assert not found.values.any()
    lost = plan(columns=True).collect()
    with pytest.raises(TraceLostError):
        lost.arrays(2)


@pytest.mark.parametrize("early", [0, 1])
@pytest.mark.parametrize("rows", ["answer", "all", {"answer": [1, 5]}])
def test_sums_have_no_row_behind_a_stop_text(rows, early):
    """Rows that an engine ran before it was told are left out, in whatever output they come."""
    options = {"layers": [0, 2], "rows": rows, "keys": "all"}
    wanted = filled(plan(columns=options), 3)
    found = plan(scope(PROMPT, may_stop=True), columns=options)
    joined = found.collect()
    request: Any = SimpleNamespace(trace=found.trace)
    for at in range(30):  # of the last of six tokens; a row may come before its token
        counted = min(max(at - 23 - early, 0), 3)
        joined.add(traced.pieces(request, at, at + 1, at == 29), counted)
    summed = joined.arrays(3)["columns"]
    assert summed.values.shape == wanted.values.shape == (2, 27)
    assert np.allclose(summed.values, wanted.values)
    everything = filled(plan(columns=options), TOKENS)
    assert not np.allclose(everything.values[:, :27], wanted.values)


def test_sums_beside_a_stop_text_may_not_be_large():
    large = scope(Prompt(length=200_000), may_stop=True)
    with pytest.raises(TooMuch) as failed:
        plan(large, columns={"layers": [0, 1]})
    assert (failed.value.code, failed.value.param) == ("trace_too_large", "trace.columns")
    for rows in ("prompt", {"prompt": [0, 9]}, {"answer": [0, 1]}):
        (reading,) = plan(large, columns={"layers": [0, 1], "rows": rows}).trace.readings
        assert "row" in reading.over
