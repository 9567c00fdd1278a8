"""Named arrays of numpy, and how they are read from what a server sends."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from saccade_client.errors import APIError, InvalidInput, MissingPackage
from saccade_client.failures import UNREADABLE
from saccade_client.wire import WIRE

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPES = {"float32": "<f4", "int32": "<i4", "uint8": "|u1"}
MOST_HEADER = 100 * 2**20


class ArrayFacts(BaseModel):
    """All about an array but its numbers, and these as they came, if they did."""

    model_config = WIRE

    dtype: str
    shape: list[int]
    axes: list[str]
    unit: str = ""
    coordinates: dict[str, list[Any]] = Field(default_factory=dict)
    mean_over: dict[str, list[int]] = Field(default_factory=dict)
    data: Any = Field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class TraceArray:
    """A named array. `coordinates` say what lies along its axes, `mean_over` what is averaged."""

    name: str
    values: NDArray[Any]
    axes: tuple[str, ...]
    unit: str
    coordinates: Mapping[str, tuple[Any, ...]]
    mean_over: Mapping[str, tuple[int, ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def at(self, where: Mapping[str, Any] | None = None, **axes: Any) -> TraceArray:
        """Choose by coordinates: `at(layer=3)`, `at({"class": "image"})`. Raises InvalidInput."""
        found = self
        for axis, coordinate in {**(where or {}), **axes}.items():
            found = found._chosen(axis, coordinate)
        return found

    def mean(self, *axes: str) -> TraceArray:
        """Average over axes by name. Raises InvalidInput."""
        places = tuple(self._axis(axis) for axis in axes)
        return self._left(self.values.mean(places), axes)

    def _chosen(self, axis: str, coordinate: Any) -> TraceArray:
        place = self._axis(axis)
        known = self.coordinates.get(axis, tuple(range(self.shape[place])))
        if coordinate not in known:
            raise InvalidInput(f"{self.name} has no {axis} {coordinate!r}; it has {list(known)}")
        return self._left(self.values.take(known.index(coordinate), place), (axis,))

    def _axis(self, axis: str) -> int:
        if axis not in self.axes:
            raise InvalidInput(f"{self.name} has no axis {axis!r}; its axes are {list(self.axes)}")
        return self.axes.index(axis)

    def _left(self, values: Any, gone: Sequence[str]) -> TraceArray:
        axes = tuple(axis for axis in self.axes if axis not in gone)
        coordinates = {name: at for name, at in self.coordinates.items() if name not in gone}
        array = numpy().asarray(values)
        return TraceArray(self.name, array, axes, self.unit, coordinates, self.mean_over)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        found: NDArray[Any] = numpy().array(self.values, dtype=dtype, copy=copy)
        return found

    def __repr__(self) -> str:
        sizes = " x ".join(f"{n} {axis}" for axis, n in zip(self.axes, self.shape, strict=True))
        return f"<{self.name}: {sizes or 'one number'}, {self.values.dtype}, {self.unit}>"


def decoded(facts: ArrayFacts) -> NDArray[Any]:
    """Return the numbers that came with an answer; null is not a number."""
    np = numpy()
    kind = np.dtype(TYPES[facts.dtype])
    values: NDArray[Any]
    if isinstance(facts.data, str):
        values = np.frombuffer(base64.b64decode(facts.data), kind)
    else:
        values = np.asarray(facts.data, np.float64 if kind.kind == "f" else kind).astype(kind)
    return values.reshape(facts.shape)


def arrays_of(content: bytes) -> dict[str, NDArray[Any]]:
    """Read the arrays of a safetensors file."""
    np = numpy()
    kinds = {"F32": "<f4", "I32": "<i4", "U8": "|u1"}
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + min(length, MOST_HEADER)])
    body = memoryview(content)[8 + length :]
    return {
        name: np.frombuffer(body[slice(*about["data_offsets"])], kinds[about["dtype"]]).reshape(
            about["shape"]
        )
        for name, about in dict(header).items()
        if name != "__metadata__"
    }


def unreadable(message: str) -> APIError:
    return APIError(f"the server's answer could not be understood: {message}", code=UNREADABLE)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Name what makes arrays of what a server sent fail."""
    try:
        yield
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise unreadable(f"{what} is no array: {error or type(error).__name__}") from error


def numpy() -> Any:
    """Return numpy. Raises MissingPackage that says how to get it."""
    try:
        import numpy as np
    except ImportError as error:
        message = "arrays of traces need numpy: pip install 'saccade-client[images]'"
        raise MissingPackage(message) from error
    return np
