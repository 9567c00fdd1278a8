"""How long a request that comes now would wait: known without asking the engine.

Sequences that have not had a first token wait, be it for their preparation or in the engine. Of
these the ones ahead of a newcomer are those that the engine's queue would let go first: the more
urgent, and of each other owner as many as the newcomer's own has, itself included. They begin as
sequences end, of which ``places`` run at a time for ``seconds`` each (Little's law):

    wait = (ahead + own - free places) seconds / places

What a sequence takes is learnt from those that ended, apart for times in which others waited: a
full batch is slower. As many run as there are seats, or as fit into the cache by their mean length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from saccade_server.api.errors import Unavailable
from saccade_server.engine.request import EngineInfo
from saccade_server.engine.timing import Timing

MOST_RETRY_SECONDS = 60
"""A client is never told to come back later than that."""


class Ticket:
    """What one request has in the backlog, until it leaves."""

    __slots__ = ("_backlog", "_left", "_runs", "owner", "priority")

    def __init__(self, backlog: Backlog, owner: str, priority: int) -> None:
        self._backlog = backlog
        self.owner = owner
        self.priority = priority
        self._left = 1  # sequences that have not ended
        self._runs = False
        backlog.waiting[priority, owner] += 1

    def revise(self, priority: int, sequences: int, patience: float) -> None:
        """Say what is known of the request now: how urgent it is, and of how many sequences.

        Raises:
            Unavailable: they would wait for more than ``patience`` seconds.
        """
        self._stand(-self._left)
        self._left = 0
        self._backlog.check(self.owner, priority, sequences, patience)
        self.priority, self._left = priority, sequences
        self._stand(sequences)

    def begun(self) -> None:
        """The first token has come."""
        if not self._runs:
            self._stand(-self._left)
            self._runs = True
            self._stand(self._left)

    def ended(self, timing: Timing | None) -> None:
        """A sequence has ended in the engine."""
        if self._left:
            if timing is not None and timing.prompt is not None:
                self._backlog.learn(timing.prompt + (timing.decode or 0.0))
            self._stand(-1)
            self._left -= 1

    def leave(self, tokens: Iterable[int] = ()) -> None:
        """Nothing is waited for any more; sequences that ended had room for so many tokens."""
        for length in tokens:
            self._backlog.tokens.add(length)
        self._stand(-self._left)
        self._left = 0

    def _stand(self, sequences: int) -> None:
        if self._runs:
            self._backlog.running += sequences
        else:
            self._backlog.waiting[self.priority, self.owner] += sequences


class Backlog:
    """All requests for answers that were let in, by whether they have begun."""

    def __init__(self, info: EngineInfo) -> None:
        self.waiting: Counter[tuple[int, str]] = Counter()  # sequences by priority and owner
        self.running = 0
        self._seats = info.max_num_seqs
        self._cache_tokens = info.cache_tokens
        self._alone = _Mean(self._seats)
        self._crowded = _Mean(self._seats)
        self.tokens = _Mean(self._seats)

    def enter(self, owner: str, priority: int) -> Ticket:
        """Count a request that was let in."""
        return Ticket(self, owner, priority)

    @property
    def places(self) -> int:
        """Sequences that run at a time."""
        if not self.tokens.value:
            return self._seats
        return max(1, min(self._seats, int(self._cache_tokens / self.tokens.value)))

    def expected(self, owner: str, priority: int, sequences: int = 1) -> float:
        """Seconds until so many sequences of an owner would all have begun, if they came now."""
        own = self.waiting[priority, owner] + sequences
        ahead = own
        for (other_priority, other), count in list(self.waiting.items()):
            if not count:
                del self.waiting[other_priority, other]
            elif other_priority < priority:
                ahead += count
            elif other_priority == priority and other != owner:
                ahead += min(count, own)
        places = self.places
        must_end = ahead - max(places - self.running, 0)
        seconds = self._crowded.value or self._alone.value
        return max(must_end, 0) * seconds / places

    def check(self, owner: str, priority: int, sequences: int, patience: float) -> None:
        """Refuse what would wait for more than ``patience`` seconds.

        Raises:
            Unavailable: it would; try again when it no longer does.
        """
        wait = self.expected(owner, priority, sequences)
        if wait > patience:
            after = min(max(math.ceil(wait - patience), 1), MOST_RETRY_SECONDS)
            message = f"The request would wait for about {wait:.1f} s; try again later."
            raise Unavailable(message, code="queue_too_long", retry_after=after)

    def learn(self, seconds: float) -> None:
        """Note what a sequence that ends now took."""
        crowded = self.running >= self.places or self.waiting.total() > 0
        (self._crowded if crowded else self._alone).add(seconds)


class _Mean:
    """Of all values at first, later of about the last ``count``."""

    def __init__(self, count: int) -> None:
        self.value = 0.0
        self._most = count
        self._seen = 0

    def add(self, value: float) -> None:
        self._seen = min(self._seen + 1, self._most)
        self.value += (value - self.value) / self._seen
