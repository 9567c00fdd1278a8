"""Threads that take turns between the owners of work, so that nobody waits behind all of another's.

Work that nobody waits for any more leaves the queue at once, with what it holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

Result = TypeVar("Result")

_Work = tuple[Future[Any], Callable[[], Any]]


class FairThreads:
    """A bounded number of threads; of each owner's work the oldest is next, owner by owner."""

    def __init__(self, count: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(count, name)
        self._lock = Lock()
        self._lines: dict[str, deque[_Work]] = {}  # in turn; none is empty

    def submit(self, owner: str, work: Callable[[], Result]) -> Future[Result]:
        """Queue work. Its future, cancelled before the work begins, takes it out again."""
        future: Future[Result] = Future()
        with self._lock:
            self._lines.setdefault(owner, deque()).append((future, work))
        self._threads.submit(self._run_next)
        future.add_done_callback(lambda done: self._forget(owner, done))
        return future

    def shutdown(self) -> None:
        """Begin nothing more, and end the threads once they are idle."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            left, self._lines = self._lines, {}
        for line in left.values():
            for future, _ in line:
                future.cancel()

    def _run_next(self) -> None:
        found = self._next()
        if found is None:
            return
        future, work = found
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _next(self) -> _Work | None:
        with self._lock:
            while self._lines:
                owner = next(iter(self._lines))
                line = self._lines.pop(owner)
                found = line.popleft()
                if line:
                    self._lines[owner] = line  # behind the others
                if found[0].set_running_or_notify_cancel():
                    return found
        return None

    def _forget(self, owner: str, future: Future[Any]) -> None:
        if not future.cancelled():
            return
        with self._lock:
            line = self._lines.get(owner, deque())
            kept = deque(item for item in line if item[0] is not future)
            if kept:
                self._lines[owner] = kept
            else:
                self._lines.pop(owner, None)
