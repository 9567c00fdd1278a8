"""Pages of the key-value cache: who holds which, and which prefixes can be shared. No tensors.

A page is free, held (by one or more sequences), or idle: held by nobody but still carrying a
known prefix. Idle pages are reused for a matching prefix, or evicted least recently used first
when free pages run out. Page 0 is never handed out: padding points there.

A page may carry an *extra*, something stored beside its keys and values that only some requests
look for (sink scores). A request that needs none may use any page of its prefix; a page with the
extra takes the place of one without.
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
        self._extra_of: dict[int, str] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that :meth:`allocate` could hand out now."""
        return len(self._free) + len(self._idle)

    @property
    def usage(self) -> float:
        """Fraction of pages held by sequences."""
        return 1.0 - self.available / self._capacity

    def match(self, keys: Iterable[bytes], extra: str | None = None) -> list[int]:
        """Hold the longest run of pages whose keys are known, and that carry ``extra``."""
        pages: list[int] = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None or (extra is not None and self._extra_of.get(page) != extra):
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

    def publish(self, page: int, key: bytes, extra: str | None = None) -> None:
        """Make a full page findable; a known key keeps its page unless this one has more."""
        known = self._page_of.get(key)
        carries = None if known is None else self._extra_of.get(known)
        if page in self._key_of or (known is not None and extra in (None, carries)):
            return
        if known is not None:
            self._forget(known)
            if known in self._idle:
                del self._idle[known]
                self._free.append(known)
        self._page_of[key] = page
        self._key_of[page] = key
        if extra is not None:
            self._extra_of[page] = extra

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

    def _hold(self, page: int) -> None:
        self._idle.pop(page, None)
        self._holders[page] += 1

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        self._forget(page)
        return page

    def _forget(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]
        self._extra_of.pop(page, None)
