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
        self._summed = {name for spec in specs for name in spec.sums}

    def add(self, pieces: Iterable[TracePiece], generated: int | None = None) -> None:
        """Keep what a step read of the arrays that are wanted here.

        Args:
            pieces: of the next output.
            generated: tokens of the answer so far, whose rows may be added up at once. None: all.
        """
        for piece in pieces:
            if piece.name in self._pieces:
                self._pieces[piece.name].append((piece.start, piece.array.unpack()))
        if generated is not None:
            for name in self._summed:
                self._add_up(name, self._end(generated))

    def arrays(self, generated: int) -> dict[str, TraceArray]:
        """All arrays, by name, once the sequence has ended with so many tokens.

        Rows behind those of these tokens, of an answer that a stop text cut, are left out.

        Raises:
            TraceLostError: rows or arrays are missing.
        """
        end = self._end(generated)
        try:
            return {spec.name: self._filled(spec, end) for spec in self._specs}
        except (ValueError, KeyError) as error:
            raise TraceLostError(str(error)) from error

    def _filled(self, spec: ArraySpec, end: int) -> TraceArray:
        if spec.rows is None:
            return spec.filled(self._total(spec, end), end=end)
        rows = spec.rows[0], max(min(spec.rows[1], end), spec.rows[0])
        if rows[0] == rows[1]:
            return spec.empty()
        return spec.filled(*(self._joined(name, rows) for name in spec.readings), end=end)

    def _end(self, generated: int) -> int:
        """The position behind the last row of an answer of so many tokens."""
        return max(self._length, self._length - 1 + generated)

    def _add_up(self, name: str, end: int) -> None:
        """Make one sum of what is before ``end``; later rows wait for their tokens."""
        totals: list[Values] = []
        waiting: list[tuple[int, Values]] = []
        for start, values in self._pieces[name]:
            if start == SUMMED:
                totals.append(values)
            elif start + len(values) <= end:
                totals.append(values.sum(0))
            else:
                waiting.append((start, values))
        if totals:
            waiting.insert(0, (SUMMED, totals[0] if len(totals) == 1 else np.sum(totals, 0)))
        self._pieces[name] = waiting

    def _total(self, spec: ArraySpec, end: int) -> Values:
        """The sum over all rows that there are, 0 without any."""
        total: Values = np.zeros(spec.shape, spec.dtype)
        for name, rows in spec.sums.items():
            if rows[0] < end:
                self._add_up(name, end)
                (start, own), *_ = self._pieces[name] or ((end, total),)
                if start != SUMMED:
                    raise ValueError(f"no row of {name} came before {end}")
                total = total + own
        return total

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
