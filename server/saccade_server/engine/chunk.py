"""What one step computes of a sequence."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from saccade_server.engine.sequence import Sequence


class Chunk(Struct, frozen=True):
    """Tokens ``start`` to ``start + length`` of a sequence, computed in one step.

    ``samples``: it reaches the last token, whose logits are needed for the next one.
    ``admission`` is the sequence's count of preemptions: after one more, the pages of this chunk
    are no longer its own.
    """

    sequence: Sequence
    start: int
    length: int
    samples: bool
    admission: int

    @classmethod
    def of(cls, sequence: Sequence, length: int) -> Chunk:
        """The next ``length`` tokens."""
        samples = sequence.computed + length == sequence.length and not sequence.measures
        return cls(sequence, sequence.computed, length, samples, sequence.preemptions)

    @property
    def end(self) -> int:
        """Keys the sequence has after the step."""
        return self.start + self.length

    @property
    def draws(self) -> bool:
        """True if a token is drawn behind it: branches take their leader's."""
        return self.samples and self.sequence.leader is None

    @property
    def is_tentative(self) -> bool:
        """True if its last row, that of the prompt, runs again: its token is not kept."""
        return self.samples and self.sequence.needs.last_row_twice

    @property
    def is_counted(self) -> bool:
        """True if this run of its rows is the one whose moved masses count, if any move.

        Of rows that preemption lets run again the first run counts: rows 0 to 7 that are computed
        again, and row 8 behind them, are two chunks (:meth:`Sequence.most`), of which the second
        counts. Of a tentative row the last run counts; where it moves, it is a chunk of its own.
        """
        is_tried = self.is_tentative and self.length == 1
        return self.start >= self.sequence.counted and not is_tried


def by_leader(chunks: Iterable[Chunk]) -> dict[Sequence, list[Chunk]]:
    """The chunks of each group, by its leader, in the order of their first chunks."""
    groups: dict[Sequence, list[Chunk]] = {}
    for chunk in chunks:
        groups.setdefault(chunk.sequence.group[0], []).append(chunk)
    return groups
