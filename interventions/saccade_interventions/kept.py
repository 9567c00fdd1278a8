"""What was made of large data and is likely to be asked for again: the last used, within a budget.

Keys name all that a value was made of, large data by a digest of its content. So a value that is
found again is the value that would be made, and nobody gets anything that he could not have made.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Kept(Generic[Made]):
    """Values by key, those used last, of so many bytes together; for several threads."""

    def __init__(self, most_bytes: int, size: Callable[[Made], int]) -> None:
        self._most = most_bytes
        self._size = size
        self._held: OrderedDict[Hashable, Made] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The value of ``key``, made if it is not held; not to be written, for others have it too.

        Two threads may make the same at once. What is larger than the budget is not held.
        """
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        made = make()
        size = self._size(made)
        with self._lock:
            if key not in self._held and size <= self._most:
                self._held[key] = made
                self._bytes += size
            while self._bytes > self._most:
                _, dropped = self._held.popitem(last=False)
                self._bytes -= self._size(dropped)
        return made
