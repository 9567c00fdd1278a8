"""A queue for one reader, whom all the items of a turn of the event loop wake once."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

Item = TypeVar("Item")

MANY = 256
"""Items that are left for later at most: a reader that takes too many at once holds others up."""


class Mailbox(Generic[Item]):
    """Items in the order in which they were put; one reader, on the same event loop."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._waiter: asyncio.Future[None] | None = None

    @property
    def waited_for(self) -> bool:
        """The reader has had everything, and waits for more."""
        return self._waiter is not None and not self._items

    def put(self, item: Item) -> None:
        """Add an item and wake the reader."""
        self._items.append(item)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def leave(self, item: Item) -> None:
        """Add an item that the reader finds when something else wakes it, or when it is many."""
        if len(self._items) + 1 < MANY:
            self._items.append(item)
        else:
            self.put(item)

    def rest(self) -> list[Item]:
        """What has come and was not taken; it is gone then."""
        items, self._items = self._items, []
        return items

    async def take(self) -> list[Item]:
        """Everything that has come, at least one item."""
        if not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.rest()
