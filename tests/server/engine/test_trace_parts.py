"""Large traces cross to the API in parts, so that nobody's tokens wait behind one."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from msgspec.structs import replace

from saccade_server.engine.heartbeat import Progress
from saccade_server.engine.loop import run_loop
from saccade_server.engine.messages import Shutdown
from saccade_server.engine.request import EngineOutput, FinishReason
from saccade_server.engine.traces.log import TraceLog


def test_a_large_trace_comes_in_parts_behind_what_is_small() -> None:
    log = TraceLog()
    rows = np.arange(5 * 2**17, dtype=np.float32).reshape(5, -1)  # of half a part each
    log.add("a", 7, rows)
    log.add("small", 7, rows[:, :3])
    log.sum("sum", rows)
    trace = log.take(last=True)
    large = EngineOutput(
        request_id="b", tokens=(9,), finish_reason=FinishReason.LENGTH, trace=trace
    )
    small = EngineOutput(request_id="a", tokens=(5, 6), trace=trace[3:4])
    core = SimpleNamespace(steps=0, busy=True, step=lambda: [large, small])
    sent: list[Any] = []
    told: list[list[Any]] = [[], [Shutdown()]]
    run_loop(cast(Any, core), lambda wait: told.pop(0), sent.append, Progress())
    first, *parts = [message.outputs for message in sent]
    assert first == [small]
    assert all(len(outputs) == 1 and outputs[0].request_id == "b" for outputs in parts)
    assert [len(output.tokens) for (output,) in parts] == [*[0] * (len(parts) - 1), 1]
    *_, (last,) = parts
    assert replace(last, trace=()) == replace(large, trace=())
    pieces = [piece for (output,) in parts for piece in output.trace]
    assert pieces == list(trace)
    assert [(p.name, p.start) for p in pieces] == [
        *(("a", 7), ("a", 9), ("a", 11), ("small", 7), ("sum", -1))
    ]
    assert np.array_equal(np.concatenate([p.array.unpack() for p in pieces[:3]]), rows)
    assert [[p.name for p in output.trace] for (output,) in parts] == [
        *(["a"], ["a"], ["a", "small"], ["sum"])
    ]
