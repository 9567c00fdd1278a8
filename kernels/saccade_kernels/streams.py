"""Edits of the residual stream: what one row of their tables means.

A residual row h changes along unit directions, one after the other. With p = h . v, the coordinate
becomes p' and nothing else of h changes:

    p' = clip(scale p + shift s, low, high),    h' = h + (p' - p) v

where s is 1, or sign(p) (SIGNED), times RMS(h) (RELATIVE). KEEP_NORM rescales h' to the norm of h.
The difference p' - p is computed as clip((scale - 1) p + shift s, low - p, high - p), so adding a
vector adds exactly that, whatever p is.

What a row undergoes is written beside the attention program that it follows: row r of these tables
goes with row r of the control tables, and row 0 changes nothing. Residual l enters layer l; the one
that leaves the last layer has the number of layers. This module knows rows and layers, never a
request or a method.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STREAM_EDITS = 4
"""Edits of one residual that a program can chain."""

STREAM_VECTORS = 1024
"""Directions in use at a time; slot 0 of the bank is never handed out."""


class StreamFlag(enum.IntFlag):
    """Variations of one edit, see the formula."""

    NONE = 0
    SIGNED = 1
    RELATIVE = 2
    KEEP_NORM = 4


@dataclass(frozen=True)
class StreamProgram:
    """The values of one table row, on the host. R residuals, E = :data:`STREAM_EDITS`.

    The first ``count`` edits of a residual happen, in order.
    """

    count: NDArray[np.int32]  # [R]
    vector: NDArray[np.int32]  # [R, E]: slot of the direction in the bank
    numbers: NDArray[np.float32]  # [R, E, 4]: scale, shift, low, high
    flags: NDArray[np.int32]  # [R, E]: StreamFlag

    @classmethod
    def identity(cls, residuals: int) -> StreamProgram:
        """A program that changes nothing."""
        numbers = np.zeros((residuals, STREAM_EDITS, 4), np.float32)
        numbers[:] = 1, 0, -np.inf, np.inf
        return cls(
            count=np.zeros(residuals, np.int32),
            vector=np.zeros((residuals, STREAM_EDITS), np.int32),
            numbers=numbers,
            flags=np.zeros((residuals, STREAM_EDITS), np.int32),
        )

    def append(
        self, residual: int, vector: int, numbers: tuple[float, ...], flags: StreamFlag
    ) -> None:
        """Chain one more edit; ``numbers`` are scale, shift, low and high.

        Raises:
            ValueError: the residual has as many edits as fit.
        """
        at = int(self.count[residual])
        if at == STREAM_EDITS:
            raise ValueError(f"one residual has at most {STREAM_EDITS} edits")
        self.vector[residual, at] = vector
        self.numbers[residual, at] = numbers
        self.flags[residual, at] = flags
        self.count[residual] += 1

    @property
    def layers(self) -> frozenset[int]:
        """The residuals that it changes."""
        return frozenset(np.flatnonzero(self.count).tolist())
