"""What the host keeps of the sequences that decode, in arrays: a seat each, one row of every array.

A decoding sequence differs from step to step by one token, and by a page now and then. What a
padded step takes from a sequence is therefore written when the sequence first decodes; a step
picks the rows of its sequences, adds what can be counted, and writes the pages that are new.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Batch
from dataclasses import dataclass, field, fields
from functools import cached_property
from operator import is_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.phases import Phase
from saccade_server.engine.batch import Ints, PromptPositions
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.sampler import AHEAD, Columns, DrawKind, Draws, numbers
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.wants import Wanted, Wants

ALWAYS = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, eq=False)
class Roster:
    """The sequences of a step of single rows, in order, and what their seats say of each row."""

    sequences: list[Sequence]
    requests: list[GenerateRequest]
    admissions: list[int]
    seats: Ints
    wants: Wants
    hides: bool  # some plan hides keys
    prompt_lengths: Ints
    changed_until: Ints  # output position of the first token drawn from unchanged logits
    delta: Ints  # position of a generated row minus the row's index in the sequence
    control_rows: NDArray[np.int32]
    tag_rows: NDArray[np.int32]
    leaders: Ints | None  # row of each one's leader; None: no sequence is a branch
    held: Ints  # rows whose draws a grammar holds
    searched: Ints  # rows whose key classes of single heads are found in the step
    draws: dict[DrawKind, Ints]  # rows that sample, by kind; greedy rows are not in here
    columns: NDArray[np.float64]  # of the sampler, [5, rows]; the uniform numbers are a step's
    noted: dict[object, Any] = field(default_factory=dict)  # by who notes it, gone with the roster

    @cached_property
    def wanted(self) -> Wanted:
        """What the rows want, in the form for a launch."""
        return Wanted.of(self.wants)

    @cached_property
    def holding(self) -> tuple[Sequence, ...]:
        """The sequences of the rows that grammars hold."""
        return tuple(self.sequences[row] for row in self.held.tolist())

    def fits(self, chunks: Batch[Chunk], sequences: list[Sequence]) -> bool:
        """True if the roster of an earlier step serves a step of these chunks too."""
        return (
            sequences == self.sequences
            and all(map(is_, self.requests, [sequence.request for sequence in sequences]))
            and [chunk.admission for chunk in chunks] == self.admissions
        )

    def prompt_rows(self, starts: Ints) -> Ints:
        """Indices of the rows that lie in prompts, given the position of each row."""
        return np.flatnonzero(starts < self.prompt_lengths)

    @property
    def drawing(self) -> Ints | None:
        """Rows that a token is drawn for; None: all."""
        if self.leaders is None:
            return None
        return np.flatnonzero(self.leaders == np.arange(len(self.leaders)))

    def changes_logits(self, starts: Ints) -> bool:
        """True if some row, at its position, draws from logits that its request changes."""
        return bool((starts + 1 - self.prompt_lengths < self.changed_until).any())


class Seats:
    """Arrays of one row a seat. There must be as many seats as a step may have sequences."""

    def __init__(
        self,
        count: int,
        pages: int,
        positions: Callable[[Sequence], PromptPositions],
        wants: Callable[[Sequence], Wants] = lambda _: Wants.NOTHING,
    ) -> None:
        """
        Args:
            pages: of the longest sequence.
            positions: of a sequence's prompt.
            wants: what the rules of a sequence's plan want for a generated row.
        """
        self.positions = positions
        self._rules_want = wants
        self.count, self.width = count, pages
        self._pages = np.zeros((count, pages), np.int32)
        self._held = np.zeros(count, np.int64)  # pages that are written
        self._prompt_lengths = np.zeros(count, np.int64)
        self._changed_until = np.zeros(count, np.int64)
        self._delta = np.zeros(count, np.int64)
        self._control_rows = np.zeros(count, np.int32)
        self._tag_rows = np.zeros(count, np.int32)
        self._kinds = np.zeros(count, np.int8)
        self._columns = np.zeros((len(fields(Columns)), count))
        self._numbers = np.zeros((count, 2 * AHEAD))
        self._first = np.zeros(count, np.int64)  # output position of the first number
        self._behind = np.zeros(count, np.int64)  # and of the one behind the last
        self._requests: list[GenerateRequest | None] = [None] * count
        self._admissions = [0] * count
        self._wants = [Wants.NOTHING] * count
        self._seat_of: dict[Sequence, int] = {}
        self._free = list(range(count))
        self._roster: Roster | None = None

    def roster(self, chunks: Batch[Chunk]) -> Roster:
        """The roster of a step of single tokens: the last step's, as long as it fits."""
        sequences = [chunk.sequence for chunk in chunks]
        if self._roster is None or not self._roster.fits(chunks, sequences):
            self._roster = self._make(chunks, sequences)
        return self._roster

    def forget(self, sequence: Sequence) -> None:
        """Give the seat of a sequence to others."""
        seat = self._seat_of.pop(sequence, None)
        if seat is not None:
            self._requests[seat] = None
            self._free.append(seat)
            self._roster = None

    def pages(self, roster: Roster, used: Ints) -> NDArray[np.int32]:
        """Page tables with the pages of these lengths; what lies behind them is 0 or unused.

        Returns:
            int32 [rows, pages of the longest sequence].
        """
        seats = roster.seats
        for row in np.flatnonzero(self._held[seats] < used).tolist():
            seat, end = seats[row], used[row]
            start = self._held[seat]
            self._pages[seat, start:end] = roster.sequences[row].pages[start:end]
            self._held[seat] = end
        found: NDArray[np.int32] = self._pages[seats]
        return found

    def draws(self, roster: Roster, at: Ints) -> Draws:
        """Parameters of the rows that sample; ``at`` has the output position of every row."""
        return {
            kind: (rows, self.columns(roster, rows, at[rows]))
            for kind, rows in roster.draws.items()
        }

    def columns(self, roster: Roster, rows: Ints, at: Ints) -> NDArray[np.float64]:
        """:class:`Columns` of some rows that draw at these output positions, [5, rows]."""
        found: NDArray[np.float64] = roster.columns[:, rows]
        found[0] = self.uniforms(roster, rows, at)
        return found

    def uniforms(self, roster: Roster, rows: Ints, at: Ints) -> NDArray[np.float64]:
        """A number in [0, 1) for the draw of each of ``rows``, at the output positions ``at``."""
        seats = roster.seats[rows]
        missing = (at < self._first[seats]) | (at >= self._behind[seats])
        for index in np.flatnonzero(missing).tolist():
            self._foresee(int(seats[index]), roster.requests[rows[index]], int(at[index]))
        found: NDArray[np.float64] = self._numbers[seats, at - self._first[seats]]
        return found

    def _foresee(self, seat: int, request: GenerateRequest, at: int) -> None:
        """Compute a seat's next numbers, from output position ``at`` on.

        How many depends on the seat, so that not all seats run out in the same step.
        """
        count = AHEAD + seat % AHEAD
        self._numbers[seat, :count] = numbers(request.sampling.seed, at, count)
        self._first[seat], self._behind[seat] = at, at + count

    def _make(self, chunks: Batch[Chunk], sequences: list[Sequence]) -> Roster:
        places = [
            self._seat(sequence, chunk.admission, sequences)
            for sequence, chunk in zip(sequences, chunks, strict=True)
        ]
        wants, own = Wants.NOTHING, [self._wants[seat] for seat in places]
        for wanted in set(own):
            wants |= wanted
        seats = np.array(places, np.int64)
        kinds = self._kinds[seats]
        draws = {kind: np.flatnonzero(kinds == kind) for kind in DrawKind if kind}
        return Roster(
            sequences=sequences,
            requests=[sequence.request for sequence in sequences],
            admissions=[chunk.admission for chunk in chunks],
            seats=seats,
            wants=wants,
            hides=any(s.plan is not None and s.plan.hides for s in sequences),
            prompt_lengths=self._prompt_lengths[seats],
            changed_until=self._changed_until[seats],
            delta=self._delta[seats],
            control_rows=self._control_rows[seats],
            tag_rows=self._tag_rows[seats],
            leaders=_leaders(sequences),
            held=np.flatnonzero([sequence.grammar is not None for sequence in sequences]),
            searched=np.flatnonzero([bool(w & Wants.CLASSES_FOUND) for w in own]),
            draws={kind: rows for kind, rows in draws.items() if len(rows)},
            columns=self._columns[:, seats],
        )

    def _seat(self, sequence: Sequence, admission: int, beside: list[Sequence]) -> int:
        """The sequence's seat, up to date but for pages taken since the last step."""
        seat = self._seat_of.get(sequence)
        if seat is None:
            if not self._free:
                self._leave_to(beside)
            seat = self._seat_of[sequence] = self._free.pop()
        # A preempted sequence has other pages.
        if self._requests[seat] is not sequence.request or self._admissions[seat] != admission:
            self._fill(seat, sequence, admission)
        return seat

    def _leave_to(self, sequences: list[Sequence]) -> None:
        """Free the seats of sequences that are not in ``sequences``: preempted ones."""
        staying = set(sequences)
        for sequence in [s for s in self._seat_of if s not in staying]:
            self.forget(sequence)

    def _fill(self, seat: int, sequence: Sequence, admission: int) -> None:
        """Fill the arrays' row of a seat: what lasts while the request and its pages do."""
        p = sequence.request.sampling
        self._requests[seat], self._admissions[seat] = sequence.request, admission
        self._held[seat] = 0
        self._pages[seat] = 0
        self._wants[seat] = wants = self._wanted(sequence)
        self._changed_until[seat] = _changed_until(sequence, wants)
        self._prompt_lengths[seat] = sequence.prompt_length
        self._delta[seat] = self.positions(sequence).delta
        self._control_rows[seat] = sequence.control_rows.get(Phase.GENERATED, 0)
        self._tag_rows[seat] = sequence.tag_row
        self._kinds[seat] = DrawKind.of(p)
        self._columns[:, seat] = Columns.table([p], [0.0])[:, 0]
        self._first[seat] = self._behind[seat] = 0

    def _wanted(self, sequence: Sequence) -> Wants:
        wants = self._rules_want(sequence)
        if sequence.request.sampling.logprobs is not None:
            wants |= Wants.LOGPROBS
        if sequence.plan is not None and sequence.plan.moved_phases:
            wants |= Wants.COUNT
        if Phase.GENERATED in sequence.needs.per_head_classes:
            wants |= Wants.PER_HEAD_CLASSES
        return wants


def _leaders(sequences: list[Sequence]) -> Ints | None:
    if all(sequence.leader is None for sequence in sequences):
        return None
    row = {sequence: row for row, sequence in enumerate(sequences)}
    return np.array([row[sequence.group[0]] for sequence in sequences], np.int64)


def _changed_until(sequence: Sequence, wants: Wants) -> int:
    """Output position from which on the sequence draws from logits that no request changes."""
    p = sequence.request.sampling
    if p.logit_bias or sequence.penalised or wants & Wants.CHOICE:
        return ALWAYS
    # What is known of distributions before a mask, a padded step does not leave behind it.
    if sequence.grammar is not None and p.logprobs is not None:
        return ALWAYS
    return max(p.min_tokens, len(p.forced))
