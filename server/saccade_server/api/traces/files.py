"""Arrays as the bytes of a safetensors file, without a copy of their numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from saccade_server.requests.traces.arrays import TraceArray

TYPES = {"float32": "F32", "int32": "I32", "uint8": "U8"}
ALIGNMENT = 8


class TraceFile(NamedTuple):
    """A file that has not been written: its pieces, their SHA-256, and how many bytes they are."""

    pieces: Sequence[bytes | memoryview]
    digest: str
    bytes: int


def trace_file(facts: Mapping[str, Any], arrays: Mapping[str, TraceArray]) -> TraceFile:
    """All arrays by name; ``facts`` are its one metadata entry, ``trace``, as JSON.

    Equal traces have equal bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"trace": _json(facts)}}
    data: list[memoryview] = []
    at = 0
    # The widest numbers first: each array then begins where its type may.
    widest = sorted(arrays.items(), key=lambda item: (-item[1].values.itemsize, item[0]))
    for name, array in widest:
        end = at + array.values.nbytes
        kind, shape = TYPES[array.spec.dtype], list(array.values.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, end]}
        data.append(array.values.reshape(-1).view(np.uint8).data)
        at = end
    text = _json(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    pieces: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text, *data]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return TraceFile(pieces, digest.hexdigest(), sum(map(len, pieces)))


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
