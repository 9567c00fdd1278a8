"""CUDA graphs: capture the decode step once for each variant, replay it ever after.

A variant runs once before it is recorded, on padding that was written as its inputs (decode.py), so
that no capture reads what an earlier variant left in the block.

All captures share one memory pool, largest first (stages sort and sum whole vocabularies), so that
the smaller ones fit into what the largest took; that is safe because one graph runs at a time and
what a replay leaves is read before the next. :class:`CudaRecorder` is the only part that needs a
GPU.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from saccade_server.engine.decode import Play, StepVariant, Variant

Prepare = Callable[[Variant], Callable[[], None]]
"""Writes the inputs of a variant and returns what computes it from them."""


class CaptureError(RuntimeError):
    """The decode step does something that no graph can hold; the message says what helps."""


class Recorder(Protocol):
    """Turns a function into one that repeats its work on the device."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run once to compile whatever is still missing, then capture."""
        ...

    def used(self) -> int:
        """Bytes of device memory in use, by whomever."""
        ...


class CudaRecorder:
    """Captures on a stream of its own, with one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """See :class:`Recorder`. The warm-up runs on the capturing stream.

        Libraries keep workspaces by stream: made during capture they would be the graph's own.
        """
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            run()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            run()
        return graph.replay

    def used(self) -> int:
        """See :class:`Recorder`."""
        torch.cuda.synchronize(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free


@dataclass(frozen=True)
class Captured:
    """What was captured, and what it cost."""

    variants: tuple[Variant, ...]
    seconds: float
    bytes: int

    def __str__(self) -> str:
        steps = [variant for variant in self.variants if isinstance(variant, StepVariant)]
        sizes = sorted({variant.size for variant in steps})
        stages = len(self.variants) - len(steps)
        return (
            f"captured {len(steps)} decode graphs and {stages} of stages in {self.seconds:.1f} s, "
            f"{self.bytes / 2**20:.0f} MiB: batch sizes {', '.join(map(str, sizes))}; "
            "plain, and edited, or residual edits too"
        )


def capture(
    prepare: Prepare, variants: Sequence[Variant], recorder: Recorder
) -> tuple[Play, Captured]:
    """Prepare and record all variants, in their order.

    Returns:
        What computes a variant from now on, and a summary for the operator.

    Raises:
        CaptureError: something in the step cannot be captured.
    """
    replays: dict[Variant, Callable[[], None]] = {}
    before, began = recorder.used(), time.perf_counter()
    with _no_garbage_collection(), torch.inference_mode():
        for variant in variants:
            replays[variant] = _record(recorder, prepare, variant)
    spent = recorder.used() - before
    summary = Captured(tuple(variants), time.perf_counter() - began, spent)
    return lambda variant: replays[variant](), summary


def _record(recorder: Recorder, prepare: Prepare, variant: Variant) -> Callable[[], None]:
    try:
        return recorder.record(prepare(variant))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise CaptureError(
            f"{_named(variant)} cannot be captured in a CUDA graph; "
            f"--enforce-eager serves without graphs. {error}"
        ) from error


def _named(variant: Variant) -> str:
    what = "decode step" if isinstance(variant, StepVariant) else variant.stage
    return f"a {what} of {variant.size} sequences"


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collecting a CUDA object in the middle of a capture would break it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
