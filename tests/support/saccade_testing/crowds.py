"""A workload run on an engine, each of its requests run alone, and what differs or is left over."""

import gc
import logging
import weakref
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import EngineOutput, FinishReason, GenerateRequest
from saccade_server.engine.sequence import Sequence
from saccade_server.models.family import ServedModel, serve
from saccade_server.requests.noops import noops
from saccade_server.requests.receipts import Run
from saccade_testing import held, tiny
from saccade_testing.answers import differences, told
from saccade_testing.engine import SINK_DIMS, Result, run
from saccade_testing.garbage import Recorder
from saccade_testing.workloads import Arrival, Workload

FAULT = "the forward pass failed on purpose"
FAILED = "the model failed on this request"
ALONE: dict[str, Any] = {"overlap": False, "padded_decode": False, "prefix_caching": False}
PATIENCE = 2000
"""Steps after which a workload is taken to hang."""


def drawn_weights(model: Any) -> Any:
    """Matrices drawn by numpy from their names, whose numbers no version changes."""
    for name, values in model.state_dict().items():
        if values.dim() >= 2 and values.is_floating_point():
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            values.copy_(torch.from_numpy(0.15 * rng.standard_normal(tuple(values.shape))))
    return model


@dataclass(frozen=True)
class Manner:
    """How engines run, and answers are compared: in float64, whose rounding is too small to change
    a choice, up to rounding; or, of engines that promise batch invariance, bit for bit.
    """

    dtype: torch.dtype = torch.float64
    invariant: bool = False
    exact: bool = False  # log-probabilities bit for bit, without the promise too


NEARLY = Manner()


@cache
def served(family: str, dtype: torch.dtype = torch.float64) -> ServedModel:
    """A tiny model; built once."""
    return serve(drawn_weights(tiny.build(family)).to(dtype))


class Faulty:
    """A served model whose passes raise where a workload says so, once ``armed``."""

    def __init__(self, model: ServedModel, faults: dict[int, str]) -> None:
        self._model = model
        self._faults = faults
        self._passes = 0
        self.armed = False
        self.raised = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, *args: Any, **more: Any) -> torch.Tensor:
        if not self.armed:
            return self._model.forward(*args, **more)
        kind = self._faults.get(self._passes)
        self._passes += 1
        if kind == "before":
            self._fail()
        hidden = self._model.forward(*args, **more)
        if kind == "behind":
            self._fail()
        self._broken = kind == "logits"
        return hidden

    def logits(self, hidden: torch.Tensor, invariant: bool = False) -> torch.Tensor:
        if self.armed and self._broken:
            self._broken = False
            self._fail()
        return self._model.logits(hidden, invariant)

    def _fail(self) -> None:
        self.raised += 1
        raise RuntimeError(FAULT)


@dataclass
class Course:
    """How a workload went: what came of each request, and what happened on the way."""

    results: dict[str, Result] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """What is wrong, in words."""

    def note(self, output: EngineOutput | None) -> None:
        if output is not None:
            result = self.results[output.request_id]
            result.tokens += output.tokens
            result.logprobs += output.logprobs
            result.last = output


@dataclass(frozen=True)
class Finished:
    """What the count of lost interventions looks at."""

    run: Run
    last_row: int


def follow(workload: Workload, manner: Manner = NEARLY) -> Course:
    """Run a workload, and every request of it that was not refused, alone; compare."""
    course = Course()
    with _warnings() as warned:
        model: Any = Faulty(served(workload.family, manner.dtype), workload.faults)
        config = EngineConfig(**workload.config, batch_invariant=manner.invariant)
        core = EngineCore(model, config, SINK_DIMS, vocabulary=held.vocabulary())
        if workload.captured:
            decoder = core._runner._decoder
            assert decoder is not None
            core._runner.capture(Recorder(decoder))
        model.armed = True
        alive = _go(core, workload, course)
    course.faults += [f"a warning: {line}" for line in warned if FAULT not in line]
    course.faults += _leftovers(core, alive)
    errors = 0
    for arrival in workload.arrivals:
        name, result = arrival.request.request_id, course.results[arrival.request.request_id]
        assert result.last is not None, f"{name} has no end"
        failed = result.last.error == FAILED
        errors += failed
        found = _compare(arrival, result, workload.family, manner)
        course.faults += [f"{name}: {what}" for what in found]
    if errors > max(model.raised - 1, 0):
        course.faults.append(f"{errors} requests failed by {model.raised} faults")
    stats = core.stats()
    course.seen.update(
        preemptions=stats.preemptions,
        cached=stats.prefix_hits > 0,
        raised=model.raised,
        failed=errors,
        captured=workload.captured,
        held=sum(
            r.last is not None and r.last.grammar is not None for r in course.results.values()
        ),
    )
    return course


def _go(core: EngineCore, workload: Workload, course: Course) -> "weakref.WeakSet[Sequence]":
    """Submit, step and abort until nothing is left to do; the sequences that there were."""
    alive: weakref.WeakSet[Sequence] = weakref.WeakSet()
    coming = list(workload.arrivals)
    leaving: dict[str, int] = {}
    for step in range(PATIENCE):
        while coming and (coming[0].step <= step or not core.busy):
            arrival = coming.pop(0)
            name = arrival.request.request_id
            course.results[name] = Result()
            course.note(core.submit(arrival.request))
            core._grammars.wait(None)  # when it is compiled is no seed's
            alive.update(member for s in core._sequences.values() for member in s.group)
            if arrival.leaves is not None:
                leaving[name] = step + arrival.leaves
        for name in [name for name, at in leaving.items() if at <= step]:
            del leaving[name]
            course.note(core.abort(name))
        if not core.busy and not coming:
            core.step()  # what was in flight when the last sequence ended
            return alive
        for output in core.step():
            course.note(output)
    raise AssertionError(f"workload {workload.seed} hangs")


def _compare(arrival: Arrival, result: Result, family: str, manner: Manner) -> list[str]:
    """What a request got, against what it gets alone."""
    assert result.last is not None
    reason = result.last.finish_reason
    refused = reason is FinishReason.ERROR and not result.tokens and result.last.error != FAILED
    lost = () if refused else _lost(arrival, result)
    said = [f"{method} was lost" for method in lost]
    alone = _alone(family, arrival.request, manner)
    wanted = told(alone)
    if refused or reason is FinishReason.ABORT or result.last.error == FAILED:
        begun = wanted["tokens"][: len(result.tokens)]
        return said if result.tokens == begun else [*said, f"{result.tokens}, not {begun}"]
    if (manner.invariant or manner.exact) and result.logprobs != alone.logprobs:
        said.append("log-probabilities have other bits")
    found = told(result)
    if result.last.cached_tokens:
        said += _count_less(found, wanted)
    return said + differences(found, wanted)


def _count_less(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Rows of a shared prefix moved for whoever computed them: no more than these are missing."""
    receipts = [one["receipt"] for one in (found, wanted) if one["receipt"]]
    if len(receipts) < 2:
        return []
    here, there = ({(at, head): rows for at, head, rows in r.pop("moved")} for r in receipts)
    return [
        f"{rows} rows moved at {site}, of {there.get(site, 0)}"
        for site, rows in here.items()
        if rows > there.get(site, 0)
    ]


def _alone(family: str, request: GenerateRequest, manner: Manner) -> Result:
    limits = {**ALONE, "max_num_seqs": 4, "cache_tokens": 2048}
    core = EngineCore(
        served(family, manner.dtype),
        EngineConfig(model=family, batch_invariant=manner.invariant, **limits),
        vocabulary=held.vocabulary(),
    )
    return run(core, [request])[request.request_id]


def _lost(arrival: Arrival, result: Result) -> list[str]:
    assert result.last is not None
    ran = Run(arrival.request.plan, result.last.receipt, result.last.cached_tokens)
    rows = len(arrival.request.tokens) + len(result.tokens) - 1
    return noops(arrival.methods, [Finished(ran, rows - 1 if result.tokens else -1)])


def _leftovers(core: EngineCore, alive: "weakref.WeakSet[Sequence]") -> list[str]:
    """What an idle engine still holds of sequences that have ended."""
    stats, rows = core.stats(), core._scheduler.rows
    held = {
        "pages": stats.cache_usage,
        "running sequences": stats.running,
        "waiting sequences": stats.waiting,
        "plans": stats.plans,
        "programs": rows.programs,
        "keys of pages": len(core._scheduler._keyers),
        "positions": len(core._runner._positions),
        "grammars": len(core._grammars._compiling),
    }
    gc.collect()
    return [f"{what} are left: {count}" for what, count in held.items() if count] + [
        f"{sequence.request.request_id} is remembered" for sequence in alive
    ]


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the engine warns of; a step that fails is tried again, and would hide what failed."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logger = logging.getLogger("saccade_server")
    logger.addHandler(listener)
    try:
        yield lines
    finally:
        logger.removeHandler(listener)
