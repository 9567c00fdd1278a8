"""What it takes to write a trace into an answer or a file, and how long others wait for it.

A trace of 16 MiB is written in a thread, as the server does, by each of its ways, and as lists in
one call, as it would be without pieces; rounds interleave them. ``processor`` is the thread's time
over that of the one call, ``wait`` the longest time that the event loop got no turn, likewise.

    python benchmarks/trace_answers.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from report import Target, write

from saccade_server.api.traces.files import trace_file
from saccade_server.api.traces.numbers import as_base64, as_lists
from saccade_server.requests.traces.arrays import ArraySpec, Axis, TraceArray

SHAPE = (64, 256, 256)
AT_ONCE = "lists, at once"


def writers() -> dict[str, Callable[[], int]]:
    """Each way to write the same numbers; they give the bytes that come of it."""
    values = np.random.default_rng(0).random(SHAPE, np.float32)
    axes = tuple(Axis(f"axis {at}", size) for at, size in enumerate(SHAPE))
    array = TraceArray(ArraySpec("array", ("array",), axes, ""), values)
    return {
        AT_ONCE: lambda: len(msgspec.json.encode(values.tolist())),
        "lists": lambda: len(b"".join(as_lists(values))),
        "base64": lambda: len(b"".join(as_base64(values))),
        "file": lambda: trace_file({}, {"array": array}).bytes,
    }


async def measure(work: Callable[[], int]) -> tuple[float, float, int]:
    """Seconds of processor, the longest wait of the event loop in seconds, and bytes."""

    def timed() -> tuple[float, int]:
        begin = time.thread_time()
        size = work()
        return time.thread_time() - begin, size

    done = asyncio.get_running_loop().run_in_executor(None, timed)
    longest = 0.0
    while not done.done():
        begin = time.perf_counter()
        await asyncio.sleep(0)
        longest = max(longest, time.perf_counter() - begin)
    seconds, size = await done
    return seconds, longest, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    ways = writers()
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, work in ways.items():
            measured = asyncio.run(measure(work))
            if turn:  # the first round warms everything up
                found[name].append(measured)
    figures: dict[str, Any] = {}
    for name, all_rounds in found.items():
        against = list(zip(all_rounds, found[AT_ONCE], strict=True))
        figures[name] = {
            "processor": statistics.median(one[0] / other[0] for one, other in against),
            "wait": statistics.median(one[1] / other[1] for one, other in against),
            "seconds": statistics.median(one[0] for one in all_rounds),
            "megabytes": all_rounds[0][2] / 1e6,
        }
        line = figures[name]
        print(
            f"{name:15} processor {line['processor']:6.3f}  wait {line['wait']:6.3f}  "
            f"{line['megabytes']:6.1f} MB"
        )
    what = "longest wait of the event loop against one call"
    targets = [
        Target(f"{what}: {name}", line["wait"], "x", 0.2, True)
        for name, line in figures.items()
        if name != AT_ONCE
    ]
    size = int(np.prod(SHAPE)) * 4
    write("trace-answers", {"rounds": rounds, "bytes": size, "found": figures}, targets)


if __name__ == "__main__":
    main()
