"""The arrays of a trace: described before anything runs, filled with what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.context import Span
from saccade_server.engine.traces.data import AnyReading

ROW, KEY = "row", "key"

Values = NDArray[Any]

Make = Callable[..., Values]
"""What becomes of the values of an array's readings."""


@dataclass(frozen=True)
class Axis:
    """A named axis. ``coordinates`` say what lies at each place; None: places of a grid."""

    name: str
    size: int
    coordinates: tuple[int | str, ...] | None = None

    @classmethod
    def of(cls, name: str, coordinates: tuple[int | str, ...]) -> Axis:
        """An axis with a coordinate for each place."""
        return cls(name, len(coordinates), coordinates)

    @classmethod
    def rows(cls, span: Span) -> Axis:
        """Query rows by position; ``span`` is as many as there can be."""
        return cls(ROW, span[1] - span[0])


def same(values: Values) -> Values:
    """What a reading gave, as it is."""
    return values


@dataclass(frozen=True)
class ArraySpec:
    """One array of a trace.

    ``readings`` name the engine's that it is made of, each of all rows that came, by ``make``.
    ``rows`` are those of its readings; None: they are summed over, and ``sums`` says what each
    reading is a sum of. ``mean_over``: axes that are averaged over, and what of them. ``tokens``:
    its numbers are tokens.
    """

    name: str
    readings: tuple[str, ...]
    axes: tuple[Axis, ...]
    unit: str
    dtype: str = "float32"
    rows: Span | None = None
    sums: Mapping[str, Span] = field(default_factory=dict)
    mean_over: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    make: Make = same
    tokens: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As large as it can become."""
        return tuple(axis.size for axis in self.axes)

    @property
    def bytes(self) -> int:
        """As many as it can become."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def filled(self, *values: Values, end: int | None = None) -> TraceArray:
        """The array with what its readings gave; keys from ``end`` on are cut off.

        Raises:
            ValueError: that has not this array's shape.
        """
        made, axes = self.make(*values), self.axes
        if end is not None and axes and axes[-1].name == KEY:
            there = tuple(at for at in axes[-1].coordinates or () if int(at) < end)
            made, axes = made[..., : len(there)], (*axes[:-1], Axis.of(KEY, there))
        made = np.ascontiguousarray(made, np.dtype(self.dtype).newbyteorder("<"))
        if self.rows is not None and axes and axes[0].name == ROW:
            start, count = self.rows[0], len(made)
            axes = (Axis.of(ROW, tuple(range(start, start + count))), *axes[1:])
        if made.shape != tuple(axis.size for axis in axes):
            expected = [axis.size for axis in axes]
            raise ValueError(f"{self.name} has the shape {list(made.shape)}, not {expected}")
        return TraceArray(replace(self, axes=axes), made)

    def empty(self) -> TraceArray:
        """The array of an answer that ended before its first row."""
        axes = (Axis.of(ROW, ()), *self.axes[1:])
        shape = tuple(axis.size for axis in axes)
        return TraceArray(replace(self, axes=axes), np.zeros(shape, self.dtype))


@dataclass(frozen=True)
class TraceArray:
    """One array of a trace, complete."""

    spec: ArraySpec
    values: Values

    def facts(self) -> dict[str, Any]:
        """All about it but its numbers, for JSON."""
        spec = self.spec
        return {
            "dtype": spec.dtype,
            "shape": list(self.values.shape),
            "axes": [axis.name for axis in spec.axes],
            "unit": spec.unit,
            "coordinates": {
                axis.name: list(axis.coordinates)
                for axis in spec.axes
                if axis.coordinates is not None
            },
            "mean_over": {name: list(places) for name, places in spec.mean_over.items()},
        }


class Asked(NamedTuple):
    """One kind of trace: the engine's readings, and the arrays that they become."""

    readings: tuple[AnyReading, ...]
    arrays: tuple[ArraySpec, ...]
