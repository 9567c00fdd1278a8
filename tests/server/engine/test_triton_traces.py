"""Traces of attention through the Triton kernels, interpreted: what the reference gives."""

from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.phases import parse_rows
from saccade_interventions.rules import SinkRule
from saccade_kernels import ops
from saccade_kernels.gpu import decode, head_weights, prefill
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.traces.data import AttentionReading, Trace
from saccade_server.models.family import serve
from saccade_testing import tiny
from saccade_testing.engine import make_request, run

TEXT = 70

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")


class Kernels(ops._Reference):
    decode = staticmethod(decode.decode)
    prefill = staticmethod(prefill.prefill)
    head_weights = staticmethod(head_weights.head_weights)


def sinks(builder: PlanBuilder) -> None:
    """Masses move from sinks in all rows; which keys are sinks is found layer by layer."""
    sink = builder.new_class()
    sites = ((1, (0, 1)), (2, (2, 3)))
    builder.mass(sites, [(sink, 0, 0.5)], parse_rows("prompt+generated"))
    builder.rule(SinkRule(0.9, (3, 11), (1, 2), ((0, sink),)))


def tags_alone(builder: PlanBuilder) -> None:
    """Prompt keys have classes, and generated rows alone are edited."""
    near = builder.tag(((20, 60),))
    builder.score(((1, (0, 1)),), [near], parse_rows("generated"), bias=1.0)


@pytest.mark.parametrize("rows", [1, 9], ids=["the last row of a prompt", "nine rows of it"])
@pytest.mark.parametrize("plan", [sinks, tags_alone])
def test_weights_of_prompt_rows(plan: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tiny.prompt("llama", text=TEXT)
    length = len(prompt.tokens)

    def answer() -> Any:
        config = EngineConfig(model="llama", max_num_seqs=2, cache_tokens=2048)
        model = serve(tiny.build("llama", dtype=torch.float32))
        core = EngineCore(model, config, sink_dims=(3, 11))
        builder = PlanBuilder(core._runner.tables.shape, length, 0)
        plan(builder)
        request = make_request(prompt, "r", builder.build(), 2, ignore_eos=True)
        where = {"rows": (length - rows, length), "layers": (0, 1, 2, 3), "heads": (0, 1, 2, 3)}
        each = AttentionReading(name="a", keys=(((0, 400),),), each=True, **where)
        return run(core, [replace(request, trace=Trace((each,)))])["r"].trace["a"]

    wanted = answer()
    monkeypatch.setattr(ops, "_backend", lambda query: Kernels)
    found = answer()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
