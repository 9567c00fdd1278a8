"""Arrays as JSON, made in small pieces: a thread that writes a large one leaves others their turn.

A call into C keeps every other thread of the process waiting, the event loop's too, until it
returns. So none is given much at once.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

PIECE = 2**14
"""Numbers that are written at once."""
PIECE_BYTES = 3 * 2**17
"""Bytes that are encoded at once, a multiple of three: the texts of pieces are one text."""
DIGITS = 9
"""Significant ones, which tell any two float32 apart."""

_encode = msgspec.json.Encoder().encode


def as_lists(values: NDArray[Any]) -> Iterator[bytes]:
    """Nested lists; what is not finite is null."""
    if values.size <= PIECE or values.ndim == 0:
        yield _encode(_shortened(values).tolist())
        return
    yield b"["
    if values.ndim == 1:
        for start in range(0, len(values), PIECE):
            text = _encode(_shortened(values[start : start + PIECE]).tolist())
            yield (b"," if start else b"") + text[1:-1]
    else:
        for at, part in enumerate(values):
            yield b"," if at else b""
            yield from as_lists(part)
    yield b"]"


def as_base64(values: NDArray[Any]) -> Iterator[bytes]:
    """One text of the little-endian numbers in C order."""
    data = values.reshape(-1).view(np.uint8).data
    yield b'"'
    for start in range(0, len(data), PIECE_BYTES):
        yield base64.b64encode(data[start : start + PIECE_BYTES])
    yield b'"'


def _shortened(values: NDArray[Any]) -> NDArray[Any]:
    """float32 as the float64 of its first nine digits: it is written with no more of them."""
    if values.dtype != np.float32:
        return values
    wide = values.astype(np.float64)
    known = np.isfinite(wide) & (wide != 0)
    exponent = np.floor(np.log10(np.abs(wide), where=known, out=np.zeros_like(wide)))
    # 10^k is exact up to 22; smaller numbers are written with all their digits.
    power = np.clip(DIGITS - 1 - exponent, 0, 22)
    factor = 10.0**power
    rounded = np.rint(wide * factor) / factor
    shortened: NDArray[np.float64] = np.where(known & (power < 22), rounded, wide)
    return shortened
