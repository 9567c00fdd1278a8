"""The engine's process with a core that computes nothing: each step, every sequence gets a token.

Started in the place of ``saccade_server.engine.process``, with the same arguments. The variable
FRONTEND_SAYS has the tokens of every answer, over and over. A step lasts as many microseconds as
the largest ``seed`` of its requests says; 0: as long as it takes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from saccade_server.engine import link, process
from saccade_server.engine.request import (
    EngineInfo,
    EngineOutput,
    EngineStats,
    FinishReason,
    GenerateRequest,
)

MOST = 1024
"""Sequences at once."""


class StubCore:
    """What ``run_loop`` drives, without a model."""

    def __init__(self, says: list[int]) -> None:
        self.steps = 0
        self.info = EngineInfo(
            model="stub",
            family="llava",
            device="cpu",
            dtype="float32",
            layers=4,
            heads=4,
            kv_heads=4,
            head_dim=32,
            hidden_size=128,
            vocab_size=448,
            eos_token_ids=(2,),
            max_model_len=4096,
            max_num_seqs=MOST,
            max_waiting=MOST,
            cache_tokens=2**30,
            max_programs=64,
            accepts_images=True,
        )
        self._says = says
        self._running: dict[str, tuple[GenerateRequest, int]] = {}
        self._due = 0.0

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def submit(self, request: GenerateRequest) -> EngineOutput | None:
        self._running[request.request_id] = (request, 0)
        return None

    def abort(self, request_id: str) -> EngineOutput | None:
        if self._running.pop(request_id, None) is None:
            return None
        return EngineOutput(request_id=request_id, finish_reason=FinishReason.ABORT)

    def step(self) -> list[EngineOutput]:
        pace = max(request.sampling.seed for request, _ in self._running.values()) * 1e-6
        now = time.perf_counter()
        if pace and now < self._due:
            time.sleep(self._due - now)
        self._due = max(self._due, now) + pace
        self.steps += 1
        return [self._next(*running) for running in tuple(self._running.values())]

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._running))

    def _next(self, request: GenerateRequest, count: int) -> EngineOutput:
        token = (self._says[count % len(self._says)],)
        name = request.request_id
        if count + 1 >= request.sampling.max_tokens:
            del self._running[name]
            return EngineOutput(request_id=name, tokens=token, finish_reason=FinishReason.LENGTH)
        self._running[name] = (request, count + 1)
        return EngineOutput(request_id=name, tokens=token)


def main() -> int:
    core = StubCore(json.loads(os.environ["FRONTEND_SAYS"]))
    link.load_core = lambda config: core  # type: ignore[assignment,return-value]
    endpoint, config, parent, pipe, logs = sys.argv[1:]
    level: Any = int(logs) if logs.isdecimal() else logs  # code from before has a level alone
    return process.main(endpoint, config, int(parent), int(pipe), level)


if __name__ == "__main__":
    sys.exit(main())
