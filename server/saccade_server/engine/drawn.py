"""Tokens that the last step drew: the row of the device's buffer that holds each sequence's."""

from __future__ import annotations

import numpy as np

from saccade_server.engine.batch import Ints
from saccade_server.engine.sequence import Sequence


class DrawnRows:
    """Rows by sequence; those of a group share their leader's."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] | None = None
        self._leaders: Ints | None = None
        self._rows: dict[Sequence, int] = {}

    def note(self, sequences: list[Sequence], leaders: Ints | None = None) -> None:
        """A step draws a token for each leader of these, in its row; the list must not change.

        ``leaders``: the row of each one's leader; None: they lead themselves.
        """
        self._sequences, self._leaders = sequences, leaders

    def mapping(self) -> dict[Sequence, int]:
        """The row of every sequence whose token was drawn."""
        if self._sequences is not None:
            self._rows = {
                member: row
                for row, sequence in enumerate(self._sequences)
                if sequence.leader is None
                for member in sequence.group
            }
            self._sequences = None
        return self._rows

    def of(self, sequences: list[Sequence], which: Ints) -> Ints:
        """The rows of some of these sequences."""
        if sequences is self._sequences:
            return which if self._leaders is None else self._leaders[which]
        rows = self.mapping()
        return np.array([rows[sequences[index]] for index in which.tolist()], np.int64)

    def forget(self, sequence: Sequence) -> None:
        """Keep nothing of a sequence that has ended."""
        self.mapping().pop(sequence, None)
