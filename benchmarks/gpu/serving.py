"""Saccade's engine in this process: requests with and without plans, and the time of its steps."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gpu.models import build
from gpu.problems import image_span
from gpu.session import Session
from gpu.shapes import ModelShape
from saccade_interventions.builder import PlanBuilder
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_kernels.controls import ControlShape
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import (
    BranchInput,
    EngineInfo,
    FinishReason,
    GenerateRequest,
    SamplingParams,
)
from saccade_server.models.base import ServedModel
from saccade_server.models.family import serve

Branches = tuple[BranchInput, ...]
"""Of one request: what its plan's rules ask for."""

CACHE_TOKENS = 150_000
"""Enough for 32 requests of 4k and what they generate."""

MEMORY_SHARE, WORKSPACE = 0.95, 8e9
"""Of a card's memory, and bytes of that for all but weights and keys."""

SINK_DIMS = (17, 33)
"""Of the residual stream; random weights have no sinks, but looking for them costs the same."""


def var_plan(
    model: ServedModel, prompt: int, fraction: float = 0.4, rows: str = "question+generated"
) -> Plan:
    """What the method ``var`` compiles to, for half a prompt of image; see methods/var.py.

    Some sinks are tagged from the start, so that mass really moves although random weights have
    none; thresholds let every row pass, which costs as much and happens to more rows.
    """
    inner = [layer for layer in range(model.layers) if 2 <= layer < model.layers - 1]
    sites = tuple((layer, tuple(range(model.heads))) for layer in inner)
    start, end = image_span(prompt)
    builder = PlanBuilder(ControlShape(model.layers, model.heads, model.head_dim), prompt, end)
    visual = builder.tag([(start, end)])
    visual_sink = builder.tag([(at, at + 1) for at in range(start, end, 97)])
    text_sink = builder.tag([(0, 1)])
    phases: tuple[Phase, ...] = (Phase.QUESTION, Phase.LAST, Phase.GENERATED)
    if rows == "all":
        phases = tuple(Phase)
    p, rho = fraction, 0.5
    builder.mass(
        sites,
        moves=[
            (visual_sink, visual_sink, -p),
            (text_sink, text_sink, -p),
            (visual, visual_sink, p),
            (visual, text_sink, p),
        ],
        phases=phases,
        gates=[
            builder.gate({visual: 1, visual_sink: 1}, at_least=1e-6),
            builder.gate({visual: 1 - rho, visual_sink: -rho}, at_least=0),
        ],
    )
    remap = ((visual, visual_sink), (0, text_sink))
    rule = SinkRule(threshold=20.0, dims=SINK_DIMS, layers=tuple(inner), remap=remap)
    builder.rule(rule)
    return builder.build()


def request(
    name: str,
    tokens: Sequence[int],
    count: int,
    plan: Plan | None = None,
    branches: Branches = (),
) -> GenerateRequest:
    """Greedy, exactly ``count`` tokens."""
    sampling = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
    return GenerateRequest(
        request_id=name, tokens=tuple(tokens), sampling=sampling, plan=plan, branches=branches
    )


def random_prompts(
    model: ServedModel | EngineInfo, count: int, length: int, seed: int = 0
) -> list[list[int]]:
    """Different from the first token on, so that nothing is shared."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(10, model.vocab_size, (count, length), generator=generator)
    return [list(map(int, row)) for row in drawn.tolist()]


def make_config(session: Session, tokens: int, **options: Any) -> EngineConfig:
    """An engine that holds ``tokens`` tokens."""
    dry = session.dry
    if dry:  # what a GPU has by default
        options = {"overlap": True, "padded_decode": "enforce_eager" not in options} | options
    defaults: dict[str, Any] = {
        "model": "random",
        "device": "cpu" if dry else "cuda",
        "dtype": "bfloat16",
        "max_model_len": 256 if dry else 4096 + 512,
        "max_num_seqs": 8 if dry else session.most,
        "max_batched_tokens": 64 if dry else 8192,
        "cache_tokens": 4096 if dry else tokens,
        "max_programs": 64,
        "prefix_caching": False,
    }
    return EngineConfig(**defaults | options)


@dataclass
class Stand:
    """An engine under test."""

    core: EngineCore
    tokens: dict[str, list[int]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    _names: int = 0

    def submit(
        self,
        prompt: Sequence[int],
        count: int,
        plan: Plan | None = None,
        branches: Branches = (),
    ) -> str:
        """Queue a request and return its name."""
        self._names += 1
        name = f"r{self._names}"
        self.tokens[name] = []
        refused = self.core.submit(request(name, prompt, count, plan, branches))
        assert refused is None, refused
        return name

    def step(self) -> int:
        """One step; the number of tokens that came out."""
        count = 0
        for output in self.core.step():
            assert output.finish_reason is not FinishReason.ERROR, output.error
            self.tokens[output.request_id] += output.tokens
            if output.finish_reason is not None:
                self.ended.add(output.request_id)
            count += len(output.tokens)
        return count

    def check_running(self, batch: int) -> None:
        """Raise if requests have waited for each other, so that fewer than ``batch`` decoded."""
        running = sum(1 for tokens in self.tokens.values() if tokens) - len(self.ended)
        assert running == batch, f"only {running} of {batch} requests decoded together"

    def run(self) -> dict[str, list[int]]:
        """Until nothing is left; tokens by request since the last clear."""
        while self.core.busy:
            self.step()
        found, self.tokens = self.tokens, {}
        self.ended.clear()
        return found

    def clear(self) -> None:
        """End what is running and let the device finish."""
        for name in list(self.tokens):
            self.core.abort(name)
        while self.core.busy:
            self.core.step()
        self.tokens.clear()
        self.ended.clear()
        _wait()

    def fill(
        self,
        prompts: Sequence[Sequence[int]],
        plans: Sequence[Plan | None],
        count: int,
        branches: Sequence[Branches] | None = None,
    ) -> float:
        """Start all requests and step until each has its first token. Seconds it took."""
        self.clear()
        _wait()
        began = time.perf_counter()
        for prompt, plan, own in zip(prompts, plans, branches or [()] * len(prompts), strict=True):
            self.submit(prompt, count, plan, own)
        while not all(self.tokens.values()):
            self.step()
        return time.perf_counter() - began

    def decode_seconds(self, steps: int, samples: int) -> list[float]:
        """Seconds of a step while every request decodes, one figure a sample."""
        batch = len(self.tokens)
        for _ in range(3):
            self.step()
        found = []
        for _ in range(samples):
            _wait()
            began = time.perf_counter()
            count = sum(self.step() for _ in range(steps))
            _wait()
            found.append((time.perf_counter() - began) / steps)
            # One step may still be in flight at either end.
            assert abs(count - steps * batch) <= batch, (count, steps, batch)
        return found

    def token_seconds(self, tokens: int, samples: int) -> list[float]:
        """Seconds of a token of every request, also of those that wait for theirs and skip steps.

        A step that is in flight at the end of a sample was so at its beginning.
        """
        batch = len(self.tokens)
        for _ in range(3):
            self.step()
        found = []
        for _ in range(samples):
            _wait()
            began, count = time.perf_counter(), 0
            while count < tokens * batch:
                count += self.step()
            _wait()
            found.append((time.perf_counter() - began) * batch / count)
        return found


@dataclass
class Bench:
    """A model and its engine, made when first needed, also by a process that was restarted."""

    name: str
    shape: ModelShape
    stand: Stand | None = None
    model: ServedModel | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def open(self, session: Session, **options: Any) -> tuple[Stand, ServedModel, str]:
        """The engine, with these options, the model in it, and its name."""
        if self.model is None:
            began = time.perf_counter()
            self.model = serve(build(self.shape, session.device))
            session.say(f"{self.name}: model made in {time.perf_counter() - began:.0f} s")
        if self.stand is None or self.options != options:
            self.stand = None
            _free()
            began = time.perf_counter()
            core = start_core(session, self.model, cache_tokens(session, self.shape), **options)
            self.options, self.stand = options, Stand(core)
            session.say(f"{self.name}: engine started in {time.perf_counter() - began:.0f} s")
        return self.stand, self.model, self.name

    def close(self) -> None:
        """Free the GPU's memory for something else."""
        self.stand = self.model = None
        _free()


def cache_tokens(session: Session, shape: ModelShape) -> int:
    """The tokens that the cache of an engine has room for on this card."""
    if session.dry:
        return CACHE_TOKENS
    total = torch.cuda.get_device_properties(0).total_memory
    room = MEMORY_SHARE * total - WORKSPACE - 2 * shape.weights
    return min(CACHE_TOKENS, int(room / (shape.layers * shape.attention.kv_bytes(1))))


def start_core(session: Session, model: ServedModel, tokens: int, **options: Any) -> EngineCore:
    """What the server does once a model is loaded (engine/load.py)."""
    return EngineCore(model, make_config(session, tokens, **options), SINK_DIMS)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
