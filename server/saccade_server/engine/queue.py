"""Who is next: the sequences that wait for a place in the running batch. No tensors.

Those that were preempted come first, in the order in which they began: they may hold table rows
that others wait for. Then, of all that wait, the most urgent (``GenerateRequest.priority``, the
lower the sooner); among these the owner that has had the least work done; of an owner the earliest.
Work is counted as in Sheng et al., Fairness in Serving Large Language Models (OSDI 2024): a token
of a prompt that was really computed is 1, one of an answer 2, and an owner that begins to wait has
had no less than who waits already, so that nobody saves work up.

Fair turns starve nobody, but priorities would: so one admission in :data:`EVERY` goes by work and
arrival alone.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from saccade_server.engine.sequence import Sequence

EVERY = 8
"""Of so many admissions one takes no notice of priorities."""

ANSWER_TOKEN = 2
"""Work of a token of an answer; one of a prompt is 1."""

MOST_ACCOUNTS = 1024
"""Owners whose work is remembered although they wait for nothing."""


@dataclass(slots=True)
class _Line:
    """What waits of one owner: by priority and arrival, and by arrival alone."""

    urgent: list[tuple[int, int, Sequence]] = field(default_factory=list)
    arrived: dict[Sequence, int] = field(default_factory=dict)


class WaitingQueue:
    """Leaders that wait, with their groups."""

    def __init__(self) -> None:
        self._returned: deque[Sequence] = deque()
        self._lines: dict[str, _Line] = {}  # by owner; none is empty
        self._work: dict[str, int] = {}  # by owner
        self._level = 0  # the most work that an owner had had when it was next
        self._arrived = 0
        self._waiting = 0  # in all lines
        self._by_priority = 0  # admissions since the last that took no notice of it
        self._soonest = math.inf  # no deadline of those that wait is before it

    def __len__(self) -> int:
        return len(self._returned) + self._waiting

    def __contains__(self, leader: Sequence) -> bool:
        line = self._lines.get(leader.request.owner)
        return leader in self._returned or (line is not None and leader in line.arrived)

    def __iter__(self) -> Iterator[Sequence]:
        """All that wait: those that were preempted, then owner by owner in order of arrival."""
        yield from tuple(self._returned)
        for line in tuple(self._lines.values()):
            yield from tuple(line.arrived)

    @property
    def is_shared(self) -> bool:
        """True if several owners wait, so that their work matters."""
        return len(self._lines) > 1

    def add(self, leader: Sequence) -> None:
        """Queue a new sequence."""
        request = leader.request
        self._arrived += 1
        self._waiting += 1
        line = self._lines.get(request.owner) or self._begin(request.owner)
        line.arrived[leader] = self._arrived
        insort(line.urgent, (request.priority, self._arrived, leader))
        self._note_deadline(leader)

    def put_back(self, leader: Sequence) -> None:
        """Queue a sequence that was preempted, before all others."""
        self._returned.appendleft(leader)
        self._note_deadline(leader)

    def remove(self, leader: Sequence) -> None:
        """Forget a sequence that waits."""
        owner = leader.request.owner
        line = self._lines.get(owner)
        if line is None or leader not in line.arrived:
            self._returned.remove(leader)
            return
        self._waiting -= 1
        arrival = line.arrived.pop(leader)
        del line.urgent[bisect_left(line.urgent, (leader.request.priority, arrival))]
        if not line.arrived:
            del self._lines[owner]

    def admit(self, leader: Sequence) -> None:
        """Take a sequence out to run; its prompt is charged to its owner."""
        if leader in self._returned:
            self._returned.remove(leader)
            return
        self._by_priority = 0 if leader is self._due() else self._by_priority + 1
        owner = leader.request.owner
        self._level = max(self._level, self._work[owner])
        self.remove(leader)
        computed = sum(member.prompt_length - member.cached_tokens for member in leader.group)
        self._charge(owner, computed)

    def settle(self, leaders: Iterable[Sequence]) -> None:
        """Charge what these have generated since they were settled last."""
        for leader in leaders:
            tokens = len(leader.tokens) - leader.prompt_length
            if tokens > leader.charged:
                work = ANSWER_TOKEN * (1 + len(leader.branches)) * (tokens - leader.charged)
                self._charge(leader.request.owner, work)
                leader.charged = tokens

    def order(self) -> Iterator[Sequence]:
        """All that wait, the next one first. What was given may leave the queue meanwhile."""
        yield from tuple(self._returned)
        tried: set[Sequence] = set()
        cursors = dict.fromkeys(self._lines, 0)
        while self._lines:
            leader = self._due() if self._by_priority >= EVERY - 1 else None
            if leader is None or leader in tried:
                leader = self._most_urgent(cursors, tried)
            if leader is None:
                return
            tried.add(leader)
            yield leader

    def late(self, now: float) -> list[Sequence]:
        """Those whose deadline has passed at ``now``, on the clock of their deadlines."""
        if now < self._soonest:
            return []
        self._soonest = math.inf
        found = []
        for leader in self:
            if leader.request.deadline is not None and leader.request.deadline <= now:
                found.append(leader)
            else:
                self._note_deadline(leader)
        return found

    def _due(self) -> Sequence:
        """Who is next by work and arrival alone."""
        firsts = ((owner, next(iter(line.arrived.items()))) for owner, line in self._lines.items())
        return min((self._work[owner], at, leader) for owner, (leader, at) in firsts)[2]

    def _most_urgent(self, cursors: dict[str, int], tried: set[Sequence]) -> Sequence | None:
        """The most urgent that was not tried; all of an owner before its cursor were."""
        best: tuple[int, int, int] | None = None
        found: Sequence | None = None
        for owner, line in self._lines.items():
            at = cursors[owner]
            while at < len(line.urgent) and line.urgent[at][2] in tried:
                at += 1
            cursors[owner] = at
            if at < len(line.urgent):
                priority, arrival, leader = line.urgent[at]
                rank = (priority, self._work[owner], arrival)
                if best is None or rank < best:
                    best, found = rank, leader
        return found

    def _begin(self, owner: str) -> _Line:
        """Open the line of an owner, which has had no less work done than who waits already."""
        least = min((self._work[other] for other in self._lines), default=self._level)
        if len(self._work) > MOST_ACCOUNTS + len(self._lines):
            self._work = {name: self._work[name] for name in self._lines}
        self._work[owner] = max(self._work.get(owner, 0), least)
        self._lines[owner] = line = _Line()
        return line

    def _charge(self, owner: str, work: int) -> None:
        self._work[owner] = self._work.get(owner, self._level) + work

    def _note_deadline(self, leader: Sequence) -> None:
        if leader.request.deadline is not None:
            self._soonest = min(self._soonest, leader.request.deadline)
