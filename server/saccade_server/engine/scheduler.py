"""Which tokens the next step computes. Pure Python, no tensors.

Continuous batching: every step runs one token of each decoding sequence and fills what is left of
the token budget with chunks of prompts, oldest first; queue.py says who is admitted next. When
pages run out the least urgent running sequence, of several the youngest, gives its pages back and
is recomputed later (preemption). Whoever was preempted once counts as urgent as the most urgent,
and the oldest of these is never preempted, so something always finishes, and in the end everything.
Branches go with their leader in all of this: the queues hold leaders, and groups.py says how the
members of a group keep in step.

A step may be scheduled while the one before it still runs. Then the last token of a decoding
sequence is not known yet (``Sequence.drawing``), but its position, slot and rows are, and that is
all that is needed here. Pages are given back at once, even if a running step still writes to them:
steps run in order, so whoever gets a page next writes it after that, and reads only what it wrote.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator
from itertools import islice

from msgspec.structs import replace

from saccade_interventions.plan import Plan
from saccade_kernels.batch import PAGE
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.groups import is_whole, next_lengths
from saccade_server.engine.pages import PagePool
from saccade_server.engine.prefix import PageKeyer
from saccade_server.engine.queue import WaitingQueue
from saccade_server.engine.rows import PlanRows
from saccade_server.engine.sequence import Sequence


class Scheduler:
    """Queues, pages and rows of all sequences.

    ``failed`` are those whose table rows could not be written, and how that failed, in words: it is
    for the owner to take and to :meth:`remove` them.
    """

    def __init__(
        self,
        pages: PagePool,
        rows: PlanRows,
        max_num_seqs: int,
        max_batched_tokens: int,
        prefix_caching: bool = True,
    ) -> None:
        self.pages = pages
        self.rows = rows
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        self.failed: list[tuple[Sequence, str]] = []
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._max_num_seqs = max_num_seqs
        self._max_batched_tokens = max_batched_tokens
        self._prefix_caching = prefix_caching
        self._keyers: dict[Sequence, PageKeyer] = {}
        self._went_ahead = False

    def add(self, leader: Sequence) -> None:
        """Queue a new sequence, with its branches."""
        for sequence in leader.group:
            self._keyers[sequence] = PageKeyer(sequence.request)
        self.waiting.settle(self.running)
        self.waiting.add(leader)

    def remove(self, leader: Sequence) -> None:
        """Forget a sequence and its branches, wherever they are, and free all they hold."""
        if leader in self.running:
            self.running.remove(leader)
        elif leader in self.waiting:
            self.waiting.remove(leader)
        self.waiting.settle([leader])
        for sequence in leader.group:
            self._drop(sequence)

    def schedule(self) -> list[Chunk]:
        """Choose the next step's chunks: single tokens first, then longer chunks of prompts."""
        before = self.preemptions
        if self.waiting.is_shared and self._seats > 0:
            self.waiting.settle(self.running)
        chunks = [] if self._went_ahead else list(self._admit_ahead())
        self._went_ahead = bool(chunks)
        budget = self._max_batched_tokens - sum(chunk.length for chunk in chunks)
        ahead = {chunk.sequence for chunk in chunks}
        longer: list[Sequence] = []
        for leader in tuple(self.running):
            if leader in ahead or leader.waits:
                continue
            pending = len(leader.tokens) + leader.drawing - leader.computed
            if leader.branches or pending > 1:
                if _is_long(leader):
                    longer.append(leader)
                    continue
            elif budget > 0 and leader.computed < len(leader.pages) * PAGE:
                # In a page that it holds: nearly all that a busy server does.
                chunks.append(Chunk(leader, leader.computed, 1, True, leader.preemptions))
                budget -= 1
                continue
            budget -= self._extend(chunks, leader, budget)
        for leader in longer:
            budget -= self._extend(chunks, leader, budget)
        if self.preemptions > before:
            chunks = [chunk for chunk in chunks if chunk.sequence.group[0] in self.running]
        else:
            chunks += self._admit_waiting(budget)
        return sorted(chunks, key=_is_longer)

    def start(self, chunks: Iterable[Chunk]) -> list[Sequence]:
        """Book chunks that are being computed; the next step goes on behind them.

        Returns:
            Branches that have measured all they were there for. They hold nothing any more.
        """
        done = []
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.computed = chunk.end
            sequence.drawing += chunk.samples
            if sequence.measures and chunk.end == sequence.prompt_length:
                done.append(sequence)
                leader = sequence.group[0]
                leader.branches.remove(sequence)
                leader.repeat(sequence.source)
                self._drop(sequence)
        return done

    def complete(self, chunk: Chunk) -> None:
        """Book a computed chunk, before its token is added; pages it filled become findable."""
        sequence = chunk.sequence
        sequence.drawing -= chunk.samples
        self._book(chunk, chunk.end)

    def run_again(self, chunk: Chunk, plan: Plan) -> None:
        """Book a computed chunk but for its last row, which runs again under ``plan``.

        The plan differs from the sequence's own in the edits of that row alone.
        """
        sequence = chunk.sequence
        sequence.drawing -= chunk.samples
        self._book(chunk, chunk.end - 1)
        sequence.request = replace(sequence.request, plan=plan)
        sequence.page_keys.clear()
        self._keyers[sequence] = PageKeyer(sequence.request)
        owns_pages = chunk.admission == sequence.preemptions
        if self.rows.exchange(sequence):
            sequence.computed -= owns_pages
            return
        # It waits in the queue for table rows, as any other does.
        if owns_pages:
            self._preempt(sequence)
        self.rows.release(sequence)

    def _book(self, chunk: Chunk, end: int) -> None:
        """Count the chunk's rows before ``end``; pages that they filled become findable."""
        sequence = chunk.sequence
        sequence.count_rows(end)
        filled = range(chunk.start // PAGE, end // PAGE)
        if filled and self._prefix_caching and chunk.admission == sequence.preemptions:
            keyer = self._keyers[sequence]
            keyer.extend(sequence, end)
            for page in filled:
                key = sequence.page_keys[page]
                self.pages.publish(sequence.pages[page], key, keyer.extra(page))

    def _extend(self, chunks: list[Chunk], leader: Sequence, budget: int) -> int:
        """Add what a running group computes next; returns how many tokens."""
        found = self._go_on(leader, budget)
        chunks += found
        return sum(chunk.length for chunk in found)

    def _go_on(self, leader: Sequence, budget: int) -> list[Chunk]:
        """What a running group computes next; nothing if it has to give its pages back."""
        pairs = [
            (member, length)
            for member, length in zip(leader.group, next_lengths(leader.group, budget), strict=True)
            if length
        ]
        if not pairs or not self._make_room(leader, pairs):
            return []
        return [Chunk.of(member, length) for member, length in pairs]

    @property
    def _seats(self) -> int:
        """How many sequences more may run; branches take one each."""
        return self._max_num_seqs - sum(1 + len(leader.branches) for leader in self.running)

    def _admit_ahead(self) -> Iterator[Chunk]:
        """Admit the first in the queue if its prompt must be whole and would never fit beside.

        A step's decodes leave too little room for it as long as they run, so they make way: in
        every second step at most, however many such prompts are waiting.
        """
        first = next(self._ready(), None) if self._seats > 0 else None
        if first is not None and is_whole(first.group):
            needed = sum(sequence.prompt_length for sequence in first.group)
            busy = sum(member.pending for leader in self.running for member in leader.group)
            if busy + needed > self._max_batched_tokens:
                yield from self._admit_waiting(self._max_batched_tokens, most=1)

    def _ready(self) -> Iterator[Sequence]:
        """Those that wait and could begin, the next one first."""
        return (leader for leader in self.waiting.order() if leader.is_ready)

    def _admit_waiting(self, budget: int, most: int | None = None) -> Iterator[Chunk]:
        """Admit in the queue's order.

        Who waits for a grammar is passed by all. Who waits for table rows is passed by sequences
        that hold theirs, which may be the ones it waits for, or need none; and if it is key classes
        of single heads that are short, by all that need none of these.
        """
        rows_are_short = per_head_classes_are_short = False
        for leader in islice(self._ready(), most):
            if budget <= 0 or len(leader.group) > self._seats:
                return
            if rows_are_short and any(m.plan is not None and not m.tag_row for m in leader.group):
                continue
            apart = self.rows.wanted_per_head_classes(leader.group)
            if apart and (per_head_classes_are_short or apart > self.rows.free_per_head_classes):
                per_head_classes_are_short = True
                continue
            if not self._acquire_rows(leader):
                rows_are_short = True
                continue
            chunks = self._admit(leader, budget)
            if not chunks:
                return
            self.waiting.admit(leader)
            self.running.append(leader)
            budget -= sum(chunk.length for chunk in chunks)
            yield from chunks

    def _acquire_rows(self, leader: Sequence) -> bool:
        """Table rows for all members or for none; whose rows cannot be written leaves the queue."""
        fresh = [member for member in leader.group if not member.tag_row]
        try:
            if all(self.rows.acquire(member) for member in leader.group):
                return True
        except Exception as error:
            self.failed.append((leader, "".join(traceback.format_exception(error))))
            self.waiting.remove(leader)
        for member in fresh:
            self.rows.release(member)
        return False

    def _make_room(self, leader: Sequence, pairs: list[tuple[Sequence, int]]) -> bool:
        """Hold pages for these many tokens more, preempting the youngest.

        Returns:
            False if the group itself has been preempted.
        """
        while leader in self.running:
            if self._hold_pages(pairs):
                return True
            self._preempt(self._least_urgent())
        return False

    def _least_urgent(self) -> Sequence:
        """Whom to preempt next; of several the youngest."""
        most_urgent = min(leader.request.priority for leader in self.running)

        def urgency(leader: Sequence) -> int:
            return most_urgent if leader.preemptions else leader.request.priority

        return max(reversed(self.running), key=urgency)

    def _hold_pages(self, pairs: list[tuple[Sequence, int]]) -> bool:
        """Pages for ``length`` tokens more of each sequence, for all or for none."""
        missing = [
            max(-(-(sequence.computed + length) // PAGE) - len(sequence.pages), 0)
            for sequence, length in pairs
        ]
        pages = self.pages.allocate(sum(missing))
        if pages is None:
            return False
        for (sequence, _), count in zip(pairs, missing, strict=True):
            sequence.pages.extend(pages[:count])
            pages = pages[count:]
        return True

    def _preempt(self, leader: Sequence) -> None:
        self.running.remove(leader)
        for sequence in leader.group:
            self._release_pages(sequence)
            sequence.preemptions += 1
        self.waiting.put_back(leader)
        self.preemptions += 1

    def _admit(self, leader: Sequence, budget: int) -> list[Chunk]:
        """Give a waiting group its shared prefixes and first pages, or leave it."""
        group = leader.group
        assert not any(s.drawing for s in group), "a step from before preemption has not ended"
        for sequence in group:
            sequence.computed = self._find_prefix(sequence)
        pairs = list(zip(group, next_lengths(group, budget), strict=True))
        if not any(length for _, length in pairs) or not self._hold_pages(pairs):
            for sequence in group:
                self._release_pages(sequence)
            return []
        for sequence in group:
            if sequence.counted:  # what is found after preemption is its own, up to there
                known = max(sequence.counted, sequence.cached_until)
                found = min(sequence.computed, sequence.prompt_length)
                sequence.cached_tokens += max(found - known, 0)
                sequence.cached_until = max(found, known)
            else:
                sequence.cached_tokens = sequence.cached_until = sequence.computed
                self.prefix_queries += sequence.prompt_length
                self.prefix_hits += sequence.computed
        leader.moments.scheduled = leader.moments.scheduled or time.monotonic()
        return [Chunk.of(sequence, length) for sequence, length in pairs if length]

    def _find_prefix(self, sequence: Sequence) -> int:
        """Hold cached pages of the prefix; at least one token is always left to compute."""
        if not self._prefix_caching or is_whole(sequence.group):
            return 0
        usable = sequence.cacheable // PAGE
        keyer = self._keyers[sequence]
        keyer.extend(sequence, usable * PAGE)
        sequence.pages = self.pages.match(sequence.page_keys[:usable], keyer.needs)
        return len(sequence.pages) * PAGE

    def _drop(self, sequence: Sequence) -> None:
        """Free all that a sequence holds, and forget it."""
        self._release_pages(sequence)
        self.rows.release(sequence)
        self._keyers.pop(sequence, None)

    def _release_pages(self, sequence: Sequence) -> None:
        """Let go of all pages; what was computed is lost to the sequence."""
        self.pages.release(sequence.pages)
        sequence.pages = []
        sequence.computed = 0


def _is_longer(chunk: Chunk) -> bool:
    return chunk.length > 1


def _is_long(leader: Sequence) -> bool:
    """True if some member has more than one token to compute."""
    return any(member.pending > 1 for member in leader.group)
