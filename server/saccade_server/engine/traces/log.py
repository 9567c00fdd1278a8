"""What a sequence's trace has read and not handed out yet. No tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade_server.engine.arrays import Array
from saccade_server.engine.traces.data import PART_BYTES, SUMMED, TracePiece


class TraceLog:
    """Pieces on their way out with the sequence's next output, and sums that grow until the last"""

    def __init__(self) -> None:
        self._pieces: list[TracePiece] = []
        self._sums: dict[str, NDArray[Any]] = {}
        self._until: dict[str, int] = {}

    def add(self, name: str, start: int, array: NDArray[np.generic]) -> None:
        """Note rows from position ``start`` on, [rows, ...]; many of them in several pieces."""
        rows = max(PART_BYTES // max(array[:1].nbytes, 1), 1)
        for at in range(0, len(array), rows):
            part = Array.pack(array[at : at + rows])
            self._pieces.append(TracePiece(name, start + at, part))
        self._until[name] = start + len(array)

    def until(self, name: str) -> int:
        """Position behind the last row that was noted; 0 before any."""
        return self._until.get(name, 0)

    def sum(self, name: str, array: NDArray[Any]) -> None:
        """Note what rows have added up to."""
        known = self._sums.get(name)
        self._sums[name] = array.copy() if known is None else known + array

    def take(self, last: bool = False) -> tuple[TracePiece, ...]:
        """What is new; with the ``last`` output the sums too."""
        if last:
            for name, array in self._sums.items():
                self._pieces.append(TracePiece(name, SUMMED, Array.pack(array)))
            self._sums = {}
        taken, self._pieces = tuple(self._pieces), []
        return taken
