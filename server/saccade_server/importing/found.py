"""What a file of vectors holds, whatever its format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 64 * 2**20
"""Of a file; that of a model of 80 layers and 8192 dimensions has 3 million."""
MOST_TENSORS = 4096


class ImportRefused(ValueError):
    """The file is not one that can be imported; the message says why."""


@dataclass(frozen=True)
class Found:
    """Vectors by the number of the decoder layer whose output they are added to.

    Args:
        directions: float32 or float64 [hidden] each, not yet checked; layers ascending.
        origin: the format, for people.
        model_type: of the model that they were made for, as the file says; empty if it does not.
    """

    directions: Mapping[int, NDArray[Any]]
    origin: str
    model_type: str = ""


class Budget:
    """Bytes that may be taken out of a file together: what overlaps could be any number of times.

    Args:
        bytes_: all of them.
    """

    def __init__(self, bytes_: int) -> None:
        self._left = bytes_

    def spend(self, bytes_: int) -> None:
        """Take some.

        Raises:
            ImportRefused: there are not as many left.
        """
        self._left -= bytes_
        if self._left < 0:
            raise ImportRefused("its tensors are more than the file holds")


class Cursor:
    """Bytes that are read in order.

    Raises:
        ImportRefused: from every method, where the bytes end too soon.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.at = 0

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        if not 0 <= count <= len(self._data) - self.at:
            raise ImportRefused("the file is cut, or names more than it holds")
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, bytes_: int) -> int:
        """A little-endian number without a sign."""
        return int.from_bytes(self.take(bytes_), "little")

    def text(self) -> str:
        """A text behind its length in 8 bytes."""
        try:
            return str(self.take(self.number(8)), "utf-8")
        except UnicodeDecodeError:
            raise ImportRefused("a name in the file is not UTF-8") from None


def as_array(raw: bytes | memoryview, kind: str, shape: Iterable[int], what: str) -> NDArray[Any]:
    """The numbers of a tensor of the type ``kind``: F16, BF16, F32 or F64; a copy.

    Raises:
        ImportRefused: another type, or the bytes are not those of the shape.
    """
    if kind not in TYPES:
        known = ", ".join(TYPES)
        raise ImportRefused(f"{what} is of type {kind}; vectors are of type {known}")
    sizes, dtype = tuple(shape), np.dtype(TYPES[kind])
    if 0 in sizes:
        raise ImportRefused(f"{what} is empty")
    if math.prod(sizes) * dtype.itemsize != len(raw):
        raise ImportRefused(f"{what}: its shape and its bytes disagree")
    values = np.frombuffer(raw, dtype).reshape(sizes)
    if kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64 if kind == "F64" else np.float32)


TYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
"""Types of numbers, and what their bytes are read as."""
