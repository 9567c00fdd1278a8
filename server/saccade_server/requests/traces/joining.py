"""Puts the pieces of a trace together: those of one sequence, into arrays by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from saccade_interventions.context import Span
from saccade_server.engine.traces.data import SUMMED, TracePiece
from saccade_server.requests.traces.arrays import ArraySpec, TraceArray, Values


class TraceLostError(Exception):
    """The engine left out something of a trace that was asked for."""


class TraceSum:
    """The pieces of one sequence's trace."""

    def __init__(self, specs: Sequence[ArraySpec], prompt_length: int) -> None:
        self._specs = specs
        self._length = prompt_length
        names = {name for spec in specs for name in spec.readings}
        self._pieces: dict[str, list[tuple[int, Values]]] = {name: [] for name in names}

    def add(self, pieces: Iterable[TracePiece]) -> None:
        """Keep what a step read of the arrays that are wanted here."""
        for piece in pieces:
            if piece.name in self._pieces:
                self._pieces[piece.name].append((piece.start, piece.array.unpack()))

    def arrays(self, generated: int) -> dict[str, TraceArray]:
        """All arrays, by name, once the sequence has ended with so many tokens.

        Rows behind those of these tokens, of an answer that a stop text cut, are left out.

        Raises:
            TraceLostError: rows or arrays are missing.
        """
        end = max(self._length, self._length - 1 + generated)
        try:
            return {spec.name: self._filled(spec, end) for spec in self._specs}
        except (ValueError, KeyError) as error:
            raise TraceLostError(str(error)) from error

    def _filled(self, spec: ArraySpec, end: int) -> TraceArray:
        if spec.rows is None:
            return spec.filled(*map(self._summed, spec.readings), end=end)
        rows = spec.rows[0], max(min(spec.rows[1], end), spec.rows[0])
        if rows[0] == rows[1]:
            return spec.empty()
        return spec.filled(*(self._joined(name, rows) for name in spec.readings), end=end)

    def _summed(self, name: str) -> Values:
        ((start, whole),) = self._pieces[name]
        if start != SUMMED:
            raise ValueError(f"{name} came for rows from {start} on")
        return whole

    def _joined(self, name: str, rows: Span) -> Values:
        """What came of these rows, [rows, ...]; later ones may have come, too."""
        found, at = [], rows[0]
        for start, values in sorted(self._pieces[name], key=lambda piece: piece[0]):
            if start != at:
                raise ValueError(f"{name} has rows from {start} on where {at} is next")
            found.append(values)
            at += len(values)
        if at < rows[1]:
            raise ValueError(f"{name} ends before row {at}; {rows[1]} was to be the end")
        return np.concatenate(found)[: rows[1] - rows[0]]
