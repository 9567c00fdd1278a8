"""Random workloads of a server that promises batch invariance: whatever runs beside a request,
however its prompt is cut, whether it was preempted or found cached pages, each of its tokens and
log-probabilities has the bits that it has alone.

A failure names its seed; ``pytest tests/server/engine/test_invariant_workloads.py --seeds 712:713``
runs it in both types.
"""

import gc
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from saccade_testing.crowds import Manner, follow
from saccade_testing.workloads import draw

FEW, ALL, BLOCK = 5, 600, 50
TYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def seen() -> Iterator[Counter[str]]:
    """What happened in the workloads that ran."""
    gc.collect()
    gc.freeze()  # so that looking for what is left is quick
    yield Counter()
    gc.unfreeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "number" in metafunc.fixturenames:
        first, last = map(int, (metafunc.config.getoption("seeds") or f"0:{FEW}").split(":"))
        metafunc.parametrize("number", range(first, last))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_each_request_gets_the_bits_that_it_gets_alone(
    number: int, dtype: torch.dtype, seen: Counter[str]
) -> None:
    course = follow(draw(number), Manner(dtype, invariant=True))
    seen.update(course.seen)
    seen["workloads"] += 1
    assert not course.faults, f"seed {number}\n" + "\n".join(course.faults)


def test_much_happened_on_the_way(seen: Counter[str]) -> None:
    """Otherwise the workloads would show little."""
    if seen["workloads"] < 2 * FEW:
        pytest.skip("not all of them ran")
    print(dict(seen))
    assert all(seen[what] for what in ("preemptions", "cached", "raised", "captured", "held"))


def test_they_tell_engines_apart_that_promise_nothing() -> None:
    """In float32 the usual sums give other bits beside neighbours, and this would see it."""
    faults = follow(draw(1), Manner(torch.float32, invariant=False, exact=True)).faults
    assert any("other bits" in fault for fault in faults)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("first", range(FEW, ALL, BLOCK))
def test_many_more_do(first: int, dtype: torch.dtype) -> None:
    manner = Manner(dtype, invariant=True)
    found = {
        at: course
        for at in range(first, min(first + BLOCK, ALL))
        if (course := follow(draw(at), manner)).faults
    }
    assert not found, "\n".join(f"seed {at}: {course.faults}" for at, course in found.items())
