"""What counting costs a decode step: one engine that counts its steps, and does not, in turns.

As in hosting/steps.py, over a model that computes nothing, one step ahead and in fixed places.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from hosting.steps import BATCHES, settled

from saccade_server.api.layers.record import Record, SequenceRecord
from saccade_server.api.metrics.tally import RequestTally
from saccade_server.engine.decode import StepVariant
from saccade_server.engine.tally import Gaps, StepTally
from saccade_server.engine.timing import Timing

STEPS, SAMPLES = 20, 11
TIMES, TOKENS = 500, 128


class Blind:
    """Stands for what counts, and does not."""

    def note(self, *counted: object) -> None:
        """Nothing."""

    def close(self, now: float) -> None:
        """Nothing."""


def measure() -> dict[str, dict[str, float]]:
    """Requests -> CPU milliseconds of a step that counts, one that does not, and the ratio.

    The ratio is the median of pairs that ran one behind the other.
    """
    torch.set_num_threads(1)
    return {str(batch): _compared(batch) for batch in BATCHES}


def alone() -> dict[str, float]:
    """Microseconds of CPU of what is counted, by itself: a request, a token, a step.

    What a machine does besides only adds: the least of many.
    """
    tally, gaps, steps = RequestTally(4096), Gaps(), StepTally()
    timing = Timing(queued=0.1, prompt=0.1, decode=0.5)
    sequence = SequenceRecord("stop", 100, 0, 30, 64, timing)
    record = Record("r", route="/v1/chat/completions", status=200, n=1, interventions=("vcd",))
    record.sequences = (sequence,)
    variant = (StepVariant(TOKENS, 1),)

    def tokens() -> None:
        for _ in range(TOKENS):
            gaps.note(1.0)
        gaps.close(1.01)

    return {
        "request": _least(lambda: tally.ended(record)),
        "token": _least(tokens) / TOKENS,
        "step": _least(lambda: steps.note(variant, TOKENS)),
    }


def _least(count: Callable[[], None]) -> float:
    found = []
    for _ in range(20):
        began = time.process_time()
        for _ in range(TIMES):
            count()
        found.append((time.process_time() - began) / TIMES * 1e6)
    return min(found)


def _compared(batch: int) -> dict[str, float]:
    core = settled("plain", batch)
    counting: Any = core._gaps, core._runner.tally
    blind: Any = Blind(), Blind()
    found: list[list[float]] = [[], []]
    for sample in range(2 * SAMPLES):
        which = (sample + sample // 2) % 2  # each goes first as often
        core._gaps, core._runner.tally = (counting, blind)[which]
        began = time.process_time()
        for _ in range(STEPS):
            core.step()
        found[which].append((time.process_time() - began) / STEPS * 1e3)
    pairs = zip(*found, strict=True)
    return {
        "counting": statistics.median(found[0]),
        "blind": statistics.median(found[1]),
        "ratio": statistics.median(one / other for one, other in pairs),
    }
