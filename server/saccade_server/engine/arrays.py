"""Dense arrays on the wire: raw bytes with dtype and shape, so that nothing can name code."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray


class Array(msgspec.Struct, frozen=True):
    """A dense array on the wire."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def pack(cls, array: NDArray[np.generic]) -> Array:
        """Copy ``array`` into wire form."""
        return cls(array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes())

    def unpack(self) -> NDArray[np.generic]:
        """A read-only array over the received bytes."""
        return np.frombuffer(self.data, dtype=np.dtype(self.dtype)).reshape(self.shape)
