"""What a decode step costs the host: scheduling, launching, landing, at several batch sizes.

An engine of the sizes of a 7B over a model that computes nothing, one step ahead as on a GPU, with
inputs in fixed places. Where a GPU replays a graph nothing runs here, so what is timed is what the
host does while a GPU computes. Contexts grow as they do in serving: pages fill, draws go on.

- plain: greedy; sampled: temperature 1; filtered: with top_p
- edited: greedy, every request with the same VAR plan
- as they come: greedy and sampled, neither one step ahead nor in fixed places, as on a CPU; the
  draws are a part of it
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from report import Target

from hosting.settings import artifacts, settings
from hosting.stub import IMAGE_TOKENS, MAX_LEN, SINK_DIMS, StubModel
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.plan import Plan
from saccade_interventions.registry import Registry
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.requests.facts import facts_of

BATCHES = {1: 0.5, 32: 1.0, 128: 2.0}
"""Requests -> CPU milliseconds that a plain step may take."""
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0.0},
    "sampled": {"temperature": 1.0},
    "filtered": {"temperature": 0.8, "top_p": 0.9},
    "edited": {"temperature": 0.0},
    "plain, as they come": {"temperature": 0.0},
    "sampled, as they come": {"temperature": 1.0},
}
PROMPT = 700
STEPS, SAMPLES, SETTLE = 40, 9, 20
LONGEST = 1216
"""Tokens of a request and more: whole pages."""


class Narrow(StubModel):
    """With a small cache, which nobody reads but memory is written once, and few tokens to draw
    from, so that a draw costs what launching it costs.
    """

    head_dim, vocab_size = 8, 16

    def logits(self, hidden: torch.Tensor, invariant: bool = False) -> torch.Tensor:
        return super().logits(hidden)[:, : self.vocab_size]


class Nothing:
    """A recorder whose replays do nothing, as a GPU's do nothing on the host. What is recorded
    does not run either: a stage of a rule asks more of a model than the stub has.
    """

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def used(self) -> int:
        return 0


def measure() -> dict[str, Any]:
    """Kind -> requests -> CPU milliseconds of a step, the median over samples."""
    torch.set_num_threads(1)
    return {kind: {str(batch): _milliseconds(kind, batch) for batch in BATCHES} for kind in KINDS}


def targets(figures: dict[str, Any]) -> list[Target]:
    """Of plain steps."""
    return [
        Target(
            f"host's CPU time of a plain decode step of {batch} requests",
            figures["plain"][str(batch)],
            "ms",
            most,
            at_most=True,
        )
        for batch, most in BATCHES.items()
    ]


def settled(kind: str, batch: int) -> EngineCore:
    """An engine that decodes so many requests, and has for a while."""
    most, comes = max(BATCHES), kind.endswith("as they come")
    config = EngineConfig(
        model="stub",
        max_num_seqs=most,
        max_batched_tokens=MAX_LEN,
        max_model_len=MAX_LEN,
        cache_tokens=most * LONGEST,
        overlap=not comes,
        padded_decode=not comes,
    )
    model: Any = Narrow()
    core = EngineCore(model, config, SINK_DIMS)
    core._runner.capture(Nothing())
    plan = _plan(core) if kind == "edited" else None
    for request in _requests(kind, batch, plan):
        assert core.submit(request) is None
    while core.stats().generated_tokens < batch * SETTLE:
        core.step()
    gc.collect()
    return core


def _milliseconds(kind: str, batch: int) -> float:
    core, found = settled(kind, batch), []
    for _ in range(SAMPLES):
        began = time.process_time()
        for _ in range(STEPS):
            core.step()
        found.append((time.process_time() - began) / STEPS * 1e3)
    assert core.stats().running == batch
    return statistics.median(found)


def _requests(kind: str, batch: int, plan: Plan | None) -> list[GenerateRequest]:
    rng = np.random.default_rng(0)
    return [
        GenerateRequest(
            request_id=f"{kind}-{index}",
            tokens=tuple(rng.integers(2, Narrow.vocab_size, PROMPT).tolist()),
            sampling=SamplingParams(max_tokens=1000, ignore_eos=True, seed=index, **KINDS[kind]),
            plan=plan,
        )
        for index in range(batch)
    ]


def _plan(core: EngineCore) -> Plan | None:
    """VAR as it is by default; its image begins behind the first page."""
    named, stored = artifacts()
    facts = replace(facts_of(core.info), accepts_images=True)
    prompt = Prompt(PROMPT, ((70, 70 + IMAGE_TOKENS),))
    methods = Registry.discover().parse(settings(named)["default"]["var"](1.0))
    return compile_plan(methods, Context(facts, prompt, stored.get))
