"""GGUF files of control vectors, as repeng, EasySteer and llama.cpp write them.

``general.architecture`` is "controlvector", and a tensor ``direction.N`` is added to the output of
decoder layer N, counted from 0 (repeng's ``control.py``: the wrapped ``layers[N]``; llama.cpp skips
0). EasySteer's ``controlvector.easysteer`` says in JSON what the vectors were found in.

The format is read here, within the bytes that there are: the reader of the package gguf follows
counts that a file invents, and a file of fifty bytes keeps it busy without end.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any

from numpy.typing import NDArray

from saccade_interventions.errors import brief
from saccade_server.importing.found import (
    MOST_TENSORS,
    Budget,
    Cursor,
    Found,
    ImportRefused,
    as_array,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ARCHITECTURE = "controlvector"
DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,5})", re.ASCII)
MOST_FIELDS = 4096
MOST_DIMS = 4
ALIGNMENT = 32
MOST_ALIGNMENT = 2**16

SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i"},
    **{6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"},
}
"""Types of values in the metadata, by number, as :mod:`struct` has them."""
STRING, ARRAY = 8, 9
TENSORS = {0: "F32", 1: "F16", 28: "F64", 30: "BF16"}
"""Types of tensors that are not quantised."""
HIDDEN_STATES = (None, "hidden_states")


def read_gguf(data: bytes) -> Found:
    """Read such a file.

    Raises:
        ImportRefused: it is none, or its vectors belong somewhere else than in the residual.
    """
    cursor = Cursor(data)
    cursor.take(len(MAGIC))
    version = cursor.number(4)
    if version not in VERSIONS:
        raise ImportRefused(f"GGUF version {version} is not read (2 and 3, little-endian, are)")
    tensors, fields = cursor.number(8), cursor.number(8)
    if tensors > MOST_TENSORS or fields > MOST_FIELDS:
        raise ImportRefused("the GGUF file has more tensors or fields than a control vector")
    metadata = _metadata(cursor, fields)
    _check_purpose(metadata)
    directions = _directions(data, cursor, tensors, metadata)
    method = metadata.get("controlvector.method")
    origin = f"GGUF control vector{f' ({brief(method)})' if isinstance(method, str) else ''}"
    hint = metadata.get("controlvector.model_hint")
    return Found(directions, origin, hint[:100] if isinstance(hint, str) else "")


def _metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        name = cursor.text()
        if name in found:
            raise ImportRefused(f"the GGUF file has the field {brief(name)} twice")
        found[name] = _value(cursor, cursor.number(4))
    return found


def _value(cursor: Cursor, kind: int) -> Any:
    """A value; of arrays only that there was one."""
    if kind == STRING:
        return cursor.text()
    if kind == ARRAY:
        item, count = cursor.number(4), cursor.number(8)
        if item == STRING:
            for _ in range(count):  # each takes eight bytes at least, so the file ends this
                cursor.take(cursor.number(8))
        else:
            cursor.take(count * struct.calcsize(_scalar(item)))
        return None
    form = _scalar(kind)
    return struct.unpack(form, cursor.take(struct.calcsize(form)))[0]


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise ImportRefused(f"the GGUF file has a value of type {kind}, which is not read")
    return SCALARS[kind]


def _check_purpose(metadata: dict[str, Any]) -> None:
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise ImportRefused(
            f"this GGUF file is not a control vector: its architecture is {brief(architecture)}"
        )
    native = metadata.get("controlvector.easysteer")
    if native is None:
        return
    try:
        said = json.loads(native)
        component = said.get("component")
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ImportRefused("its controlvector.easysteer is not a JSON object") from None
    if component not in HIDDEN_STATES:
        raise ImportRefused(
            f"its vectors belong to EasySteer's component {brief(component)}; "
            "only those of hidden_states are imported"
        )


def _directions(
    data: bytes, cursor: Cursor, count: int, metadata: dict[str, Any]
) -> dict[int, NDArray[Any]]:
    infos = [_info(cursor) for _ in range(count)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= MOST_ALIGNMENT:
        raise ImportRefused("the alignment of the GGUF file makes no sense")
    start = -(-cursor.at // alignment) * alignment
    found: dict[int, NDArray[Any]] = {}
    budget = Budget(len(data))
    for name, shape, kind, offset in infos:
        direction = DIRECTION.fullmatch(name)
        if direction is None:
            raise ImportRefused(f"the tensor {brief(name)} is no direction.N of a layer")
        layer = int(direction[1])
        if layer in found:
            raise ImportRefused(f"the tensor {brief(name)} is there twice")
        bytes_ = _bytes_of(shape, kind, name)
        budget.spend(bytes_)
        body = Cursor(data)
        body.take(start + offset)
        found[layer] = as_array(body.take(bytes_), TENSORS[kind], shape, name)
    return dict(sorted(found.items()))


def _info(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and place of a tensor; dimensions are there in the reverse order."""
    name, dims = cursor.text(), cursor.number(4)
    if dims > MOST_DIMS:
        raise ImportRefused(f"the tensor {brief(name)} has {dims} dimensions")
    shape = tuple(cursor.number(8) for _ in range(dims))[::-1]
    return name, shape, cursor.number(4), cursor.number(8)


def _bytes_of(shape: tuple[int, ...], kind: int, name: str) -> int:
    if kind not in TENSORS:
        raise ImportRefused(f"{brief(name)} is quantised (type {kind}); vectors must not be")
    count = 1
    for size in shape:
        count *= size
    return count * {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}[TENSORS[kind]]
