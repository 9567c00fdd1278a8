"""Which tokens the next step computes. Pure Python, no tensors.

Continuous batching: every step runs one token of each decoding sequence and fills what is left of
the token budget with chunks of prompts, oldest first. When pages run out the youngest running
sequence gives its pages back and is recomputed later (preemption); the oldest one is never
preempted, so something always finishes.

A step may be scheduled while the one before it still runs. Then the last token of a decoding
sequence is not known yet (``Sequence.drawing``), but its position, slot and rows are, and that is
all that is needed here. Pages are given back at once, even if a running step still writes to them:
steps run in order, so whoever gets a page next writes it after that, and reads only what it wrote.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from saccade_kernels.batch import PAGE
from saccade_server.engine.pages import PagePool
from saccade_server.engine.prefix import PageKeyer
from saccade_server.engine.rows import PlanRows
from saccade_server.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens ``start`` to ``start + length`` of a sequence, computed in one step.

    ``samples``: it reaches the last token, whose logits give the next one. ``admission`` is the
    sequence's count of preemptions: after one more, the pages of this chunk are no longer its own.
    """

    sequence: Sequence
    start: int
    length: int
    samples: bool
    admission: int

    @classmethod
    def of(cls, sequence: Sequence, length: int) -> Chunk:
        """The next ``length`` tokens."""
        samples = sequence.computed + length == sequence.length
        return cls(sequence, sequence.computed, length, samples, sequence.preemptions)

    @property
    def end(self) -> int:
        """Keys the sequence has after the step."""
        return self.start + self.length


class Scheduler:
    """Queues, pages and rows of all sequences."""

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
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._max_num_seqs = max_num_seqs
        self._max_batched_tokens = max_batched_tokens
        self._prefix_caching = prefix_caching
        self._keyers: dict[Sequence, PageKeyer] = {}

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._keyers[sequence] = PageKeyer(sequence.request)
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and free all it holds."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release_pages(sequence)
        self.rows.release(sequence)
        self._keyers.pop(sequence, None)

    def schedule(self) -> list[Chunk]:
        """Choose the next step's chunks: single tokens first, then longer chunks of prompts."""
        before = self.preemptions
        budget = self._max_batched_tokens
        chunks: list[Chunk] = []
        for sequence in sorted(self.running, key=lambda running: running.pending > 1):
            length = 0 if sequence.waits else min(sequence.pending, budget)
            if length and self._make_room(sequence, sequence.computed + length):
                chunks.append(Chunk.of(sequence, length))
                budget -= length
        if self.preemptions > before:
            chunks = [chunk for chunk in chunks if chunk.sequence in self.running]
        else:
            chunks += self._admit_waiting(budget)
        return sorted(chunks, key=lambda chunk: chunk.length > 1)

    def start(self, chunks: Iterable[Chunk]) -> None:
        """Book chunks that are being computed; the next step goes on behind them."""
        for chunk in chunks:
            chunk.sequence.computed = chunk.end
            chunk.sequence.drawing += chunk.samples

    def complete(self, chunk: Chunk) -> None:
        """Book a computed chunk, before its token is added; pages it filled become findable."""
        sequence = chunk.sequence
        sequence.drawing -= chunk.samples
        sequence.count_rows(chunk.end)
        if self._prefix_caching and chunk.admission == sequence.preemptions:
            keyer = self._keyers[sequence]
            keyer.extend(sequence, chunk.end)
            for page in range(chunk.start // PAGE, chunk.end // PAGE):
                key = sequence.page_keys[page]
                self.pages.publish(sequence.pages[page], key, keyer.extra(page))

    def _admit_waiting(self, budget: int) -> Iterator[Chunk]:
        """Admit in order of arrival; only plain sequences pass one that waits for table rows."""
        rows_are_short = False
        for sequence in list(self.waiting):
            if budget <= 0 or len(self.running) == self._max_num_seqs:
                return
            if rows_are_short and sequence.plan is not None:
                continue
            if not self.rows.acquire(sequence):
                rows_are_short = True
                continue
            chunk = self._admit(sequence, budget)
            if chunk is None:
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)
            budget -= chunk.length
            yield chunk

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Hold pages for ``tokens`` tokens, preempting the youngest; False if that is itself."""
        if sequence not in self.running:
            return False
        missing = -(-tokens // PAGE) - len(sequence.pages)
        while missing > 0:
            pages = self.pages.allocate(missing)
            if pages is not None:
                sequence.pages.extend(pages)
                return True
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release_pages(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _admit(self, sequence: Sequence, budget: int) -> Chunk | None:
        """Give a waiting sequence its shared prefix and first pages, or leave it."""
        assert not sequence.drawing, "a step that was started before preemption has not ended"
        found = self._find_prefix(sequence)
        length = min(len(sequence.tokens) - found, budget)
        pages = self.pages.allocate(-(-(found + length) // PAGE) - len(sequence.pages))
        if pages is None:
            self._release_pages(sequence)
            return None
        sequence.pages.extend(pages)
        sequence.computed = found
        if sequence.counted == 0:  # later finds are mostly its own pages, from before preemption
            sequence.cached_tokens = found
            self.prefix_queries += sequence.prompt_length
            self.prefix_hits += found
        return Chunk.of(sequence, length)

    def _find_prefix(self, sequence: Sequence) -> int:
        """Hold cached pages of the prefix; at least one token is always left to compute."""
        if not self._prefix_caching:
            return 0
        usable = (len(sequence.tokens) - 1) // PAGE
        keyer = self._keyers[sequence]
        keyer.extend(sequence, usable * PAGE)
        sequence.pages = self.pages.match(sequence.page_keys[:usable], keyer.needs)
        return len(sequence.pages) * PAGE

    def _release_pages(self, sequence: Sequence) -> None:
        self.pages.release(sequence.pages)
        sequence.pages = []
