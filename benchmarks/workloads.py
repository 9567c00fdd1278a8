"""Run random workloads of the engine and record how many there were and what happened in them.

    python benchmarks/workloads.py [--seeds 0:1500]

They are those of tests/server/engine/test_workloads.py, which says what is compared. Exits with 1
if one of them failed; the record names its seed and what was wrong.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter

import torch
from report import HERE, write

sys.path.append(str(HERE.parent / "tests" / "support"))

from saccade_testing.crowds import Course, follow, served
from saccade_testing.workloads import FAMILIES, Workload, draw


def happened(workload: Workload, course: Course) -> Counter[str]:
    """What there was in a workload, by name."""
    found = Counter(course.seen)
    found[f"family {workload.family}"] += 1
    for arrival in workload.arrivals:
        result = course.results[arrival.request.request_id]
        assert result.last is not None
        found["requests"] += 1
        found["tokens"] += len(result.tokens)
        found["requests with a plan"] += arrival.request.plan is not None
        found["requests with branches"] += bool(arrival.request.branches)
        found["requests that found a cached prefix"] += result.last.cached_tokens > 0
        found[f"ended by {result.last.finish_reason}"] += 1
        for method in {entry["method"] for entry in arrival.entries}:
            found[f"method {method}"] += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", default="0:1500", help="FIRST:LAST")
    first, last = map(int, parser.parse_args().seeds.split(":"))
    torch.set_num_threads(1)
    for family in FAMILIES:
        served(family)
    gc.collect()
    gc.freeze()  # so that looking for what is left is quick
    began, totals = time.process_time(), Counter[str]()
    failed: dict[str, list[str]] = {}
    for seed in range(first, last):
        workload = draw(seed)
        try:
            course = follow(workload)
        except Exception as error:
            failed[str(seed)] = [repr(error)]
        else:
            totals.update(happened(workload, course))
            if course.faults:
                failed[str(seed)] = course.faults
        if str(seed) in failed:
            print(f"seed {seed}: {failed[str(seed)]}", flush=True)
        if seed % 50 == 49:
            print(f"{seed + 1 - first} of {last - first}, {len(failed)} failed", flush=True)
    figures = {
        "seeds": [first, last],
        "workloads": last - first,
        "failed": failed,
        "cpu_seconds": round(time.process_time() - began),
        "happened": dict(sorted(totals.items())),
    }
    print(write("workloads", figures, [], show=False))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
