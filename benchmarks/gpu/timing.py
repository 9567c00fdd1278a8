"""Seconds of one call: CUDA graphs and events on a GPU, the host's clock elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

SAMPLES = 5
SAMPLE_SECONDS = 0.02
L2_BYTES = 240e6
"""Rotate so many bytes of inputs that none is still in the 60 MB L2 cache from its last use."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Median over samples, and (largest - smallest) / median of them."""

    seconds: float
    spread: float
    graph: bool

    def as_json(self) -> dict[str, float | bool]:
        found: dict[str, float | bool] = {
            "us": round(self.seconds * 1e6, 3),
            "spread": round(self.spread, 4),
        }
        return found if self.graph else {**found, "graph": False}


def measure(calls: Sequence[Call], device: torch.device, graph: bool = True) -> Timing:
    """Time one call; several calls, over different inputs, take turns."""
    if device.type == "cpu":
        return _measure_host(calls)
    estimate = _warm(calls)
    count = max(len(calls), min(20, round(0.01 / estimate) or 1))
    if graph:
        try:
            return _measure_graph(calls, count)
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise
            torch.cuda.synchronize()  # raises if more than the capture has failed

    def run() -> None:
        for index in range(count):
            calls[index % len(calls)]()

    return _sample(run, count, graph=False)


def _warm(calls: Sequence[Call]) -> float:
    """Compile and load everything, on a side stream as graphs want it; seconds of one call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in (*calls, *calls[:2]):
            call()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for call in calls:
            call()
        end.record()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return max(start.elapsed_time(end) / 1e3 / len(calls), 1e-6)


def _measure_graph(calls: Sequence[Call], count: int) -> Timing:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(count):
            calls[index % len(calls)]()
    graph.replay()
    return _sample(graph.replay, count, graph=True)


def _sample(run: Call, count: int, graph: bool) -> Timing:
    """``run`` makes ``count`` calls."""
    once = _elapsed(run, 1)
    repeats = max(1, min(200, round(SAMPLE_SECONDS / once)), -(-20 // count))
    if once > 0.5:  # slow peers: two samples say enough
        samples = [_elapsed(run, 1) / count for _ in range(2)]
    else:
        samples = [_elapsed(run, repeats) / repeats / count for _ in range(SAMPLES)]
    return _timing(samples, graph)


def _elapsed(run: Call, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _measure_host(calls: Sequence[Call]) -> Timing:
    samples = []
    for call in (*calls[:1], *calls[:2]):
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return _timing(samples[1:], graph=True)


def _timing(samples: list[float], graph: bool) -> Timing:
    middle = statistics.median(samples)
    return Timing(middle, (max(samples) - min(samples)) / middle, graph)
