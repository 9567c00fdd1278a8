"""Threads that several owners share."""

import gc
import threading
import weakref
from concurrent.futures import wait

import pytest

from saccade_server.api.fair_threads import FairThreads


@pytest.fixture
def held():
    """One thread, and what ends the work that it is held with."""
    threads = FairThreads(1, "test")
    go = threading.Event()
    begun = threading.Event()
    threads.submit("x", lambda: (begun.set(), go.wait(10)))
    assert begun.wait(10)
    yield threads, go
    go.set()
    threads.shutdown()


def test_owners_take_turns_and_each_ones_work_is_in_order(held) -> None:
    threads, go = held
    seen: list[str] = []
    work = [*(("a", f"a{i}") for i in range(4)), *(("b", f"b{i}") for i in range(2)), ("c", "c0")]
    futures = [threads.submit(owner, lambda name=name: seen.append(name)) for owner, name in work]
    go.set()
    wait(futures, 10)
    assert seen == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_results_and_errors_come_back() -> None:
    threads = FairThreads(2, "test")
    assert threads.submit("a", lambda: 7).result(10) == 7
    with pytest.raises(ZeroDivisionError):
        threads.submit("a", lambda: 1 // 0).result(10)
    assert threads.submit("a", lambda: 8).result(10) == 8
    threads.shutdown()


def test_work_that_nobody_waits_for_leaves_with_what_it_holds(held) -> None:
    threads, go = held

    class Large:
        pass

    large = Large()
    seen = weakref.ref(large)
    done: list[int] = []
    future = threads.submit("a", lambda held=large: done.append(id(held)))
    kept = threads.submit("a", lambda: done.append(0))
    del large
    assert future.cancel()
    del future
    gc.collect()
    assert seen() is None
    go.set()
    kept.result(10)
    assert done == [0]
    assert not threads._lines


def test_what_is_left_at_the_end_is_cancelled(held) -> None:
    threads, _ = held
    left = threads.submit("a", lambda: None)
    threads.shutdown()
    assert left.cancelled()
    with pytest.raises(RuntimeError):
        threads.submit("a", lambda: None)
