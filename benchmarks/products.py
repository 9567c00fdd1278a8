"""What invariant products cost on a CPU, over those that the library's order of sums is good for.

    python benchmarks/products.py [--threads 1]

CPU time of the process, the least of many calls, so that what else runs here counts little. Shapes
are those of SmolLM2-135M's matrices, merged as they are served, and one that no cache holds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from report import Target, write

from saccade_kernels import products

SHAPES = {
    "qkv": (960, 576),
    "output": (576, 576),
    "gates": (3072, 576),
    "down": (576, 1536),
    "head": (49152, 576),
    "large": (4096, 4096),
}
ROWS = (1, 2, 4, 8, 16, 64, 256)
DTYPES = (torch.float32, torch.bfloat16)
SECONDS = 0.15
"""Of each measurement, at least."""

DECODE = "invariant products of 4 and 8 rows over plain ones, geometric mean, {}"
ONE = "invariant products of one row over plain ones, geometric mean, {}"
PROMPT = "invariant products of 64 and 256 rows over plain ones, geometric mean, {}"
GOALS = {DECODE: ((4, 8), 1.3), ONE: ((1,), 4.0), PROMPT: ((64, 256), 1.2)}


def least(call: Callable[[], object]) -> float:
    """CPU seconds of the fastest call."""
    call()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.process_time()
        call()
        best = min(best, time.process_time() - began)
    return best


def measured(dtype: torch.dtype) -> dict[str, Any]:
    """By shape and rows."""
    found: dict[str, Any] = {}
    for name, (columns, inner) in SHAPES.items():
        weight = torch.randn(columns, inner).to(dtype)
        began = time.process_time()
        padded = products.keeps_bits(weight)
        tried = round(1e3 * (time.process_time() - began))
        cell: dict[str, Any] = {"tried_ms": tried, "padded": padded}
        for rows in ROWS:
            hidden = torch.randn(rows, inner).to(dtype)
            plain, own = (
                least(partial(products.linear, hidden, weight, invariant=invariant))
                for invariant in (False, True)
            )
            times = {"plain_us": round(1e6 * plain), "us": round(1e6 * own)}
            cell[str(rows)] = times | {"over_plain": round(own / plain, 3)}
        found[name] = cell
    return found


def mean(found: dict[str, Any], rows: tuple[int, ...]) -> float:
    """Geometric, of the prices of all shapes."""
    prices = [cell[str(count)]["over_plain"] for cell in found.values() for count in rows]
    return round(float(torch.tensor(prices).log().mean().exp()), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    found = {str(dtype).removeprefix("torch."): measured(dtype) for dtype in DTYPES}
    targets = [
        Target(name.format(dtype), mean(one, rows), "x", bound, at_most=True)
        for dtype, one in found.items()
        for name, (rows, bound) in GOALS.items()
    ]
    write("products", {"threads": threads, **found}, targets)


if __name__ == "__main__":
    main()
