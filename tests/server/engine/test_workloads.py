"""Random workloads: whatever runs beside a request, fails, leaves or takes its pages, its answer,
log-probabilities and receipt are those that it gets alone, and nothing is left behind.

A failure names its seed; ``pytest tests/server/engine/test_workloads.py --seeds 712:713`` runs it.
"""

import gc
from collections import Counter
from collections.abc import Iterator

import pytest

from saccade_testing.crowds import follow
from saccade_testing.workloads import draw

FEW, ALL, BLOCK = 100, 1500, 100


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


def test_each_request_gets_what_it_gets_alone(number: int, seen: Counter[str]) -> None:
    course = follow(draw(number))
    seen.update(course.seen)
    seen["workloads"] += 1
    assert not course.faults, f"seed {number}\n" + "\n".join(course.faults)


def test_much_went_wrong_on_the_way(seen: Counter[str]) -> None:
    """Otherwise the workloads would show little."""
    if seen["workloads"] < FEW:
        pytest.skip("not all of them ran")
    print(dict(seen))
    assert min(seen[what] for what in ("preemptions", "cached", "raised", "captured", "held")) > 10


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(FEW, ALL, BLOCK))
def test_many_more_do(first: int, seen: Counter[str]) -> None:
    found = {
        at: course for at in range(first, first + BLOCK) if (course := follow(draw(at))).faults
    }
    assert not found, "\n".join(f"seed {at}: {course.faults}" for at, course in found.items())
