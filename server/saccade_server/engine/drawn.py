"""Tokens that the last step drew: the row of the device's buffer that holds each sequence's."""

from __future__ import annotations

import numpy as np

from saccade_server.engine.batch import Ints
from saccade_server.engine.sequence import Sequence


class DrawnRows:
    """Rows by sequence; those of a group share their leader's."""

    def __init__(self) -> None:
        self._leaders: list[Sequence] | None = None
        self._rows: dict[Sequence, int] = {}

    def note(self, leaders: list[Sequence]) -> None:
        """A step draws a token for each of these, in order; the list must not change."""
        self._leaders = leaders

    def mapping(self) -> dict[Sequence, int]:
        """The row of every sequence whose token was drawn."""
        if self._leaders is not None:
            self._rows = {
                member: row for row, leader in enumerate(self._leaders) for member in leader.group
            }
            self._leaders = None
        return self._rows

    def of(self, sequences: list[Sequence], which: Ints) -> Ints:
        """The rows of some of these sequences."""
        if sequences is self._leaders:
            return which
        rows = self.mapping()
        return np.array([rows[sequences[index]] for index in which.tolist()], np.int64)

    def forget(self, sequence: Sequence) -> None:
        """Keep nothing of a sequence that has ended."""
        self.mapping().pop(sequence, None)
