"""Pages of the key-value cache: who holds which, and which prefixes can be shared. No tensors.

A page is free, held (by one or more sequences), or idle: held by nobody but still carrying a
known prefix. Idle pages are reused for a matching prefix, or evicted least recently used first
when free pages run out. Page 0 is never handed out: padding points there.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence


class PagePool:
    """Reference-counted pages with a prefix index."""

    def __init__(self, num_pages: int) -> None:
        if num_pages < 2:
            raise ValueError("the cache needs at least two pages; page 0 is padding")
        self._capacity = num_pages - 1
        self._free = deque(range(1, num_pages))
        self._holders = [0] * num_pages
        self._key_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that :meth:`allocate` could hand out now."""
        return len(self._free) + len(self._idle)

    @property
    def usage(self) -> float:
        """Fraction of pages held by sequences."""
        return 1.0 - self.available / self._capacity

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """Hold the longest run of pages whose keys are known, from the first key on."""
        pages: list[int] = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            self._hold(page)
            pages.append(page)
        return pages

    def allocate(self, count: int) -> list[int] | None:
        """Hold ``count`` fresh pages, evicting idle ones as needed; None if there are too few."""
        if count > self.available:
            return None
        pages: list[int] = []
        for _ in range(count):
            page = self._free.popleft() if self._free else self._evict()
            self._holders[page] = 1
            pages.append(page)
        return pages

    def publish(self, page: int, key: bytes) -> None:
        """Make a full page findable; a key that is already known keeps its first page."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Let go of pages, the end of a prefix first, so that its start is evicted last."""
        for page in reversed(pages):
            self._holders[page] -= 1
            assert self._holders[page] >= 0, "a page was released more often than held"
            if self._holders[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def forget(self) -> None:
        """Drop every idle prefix."""
        while self._idle:
            self._free.append(self._evict())

    def _hold(self, page: int) -> None:
        self._idle.pop(page, None)
        self._holders[page] += 1

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._key_of.pop(page)]
        return page
