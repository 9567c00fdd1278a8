"""``.pt`` files: the archive that ``torch.save`` writes, read without torch and without unpickling.

It is a zip of uncompressed files: ``NAME/data.pkl`` says what there is, ``NAME/data/KEY`` holds the
numbers of each storage.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from saccade_interventions.errors import brief
from saccade_server.importing.found import (
    MOST_BYTES,
    MOST_TENSORS,
    Budget,
    ImportRefused,
    as_array,
)
from saccade_server.importing.pickled import Array, Storage, Tensor, read_pickle

MAGIC = b"PK\x03\x04"
STORAGES = {
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
}
ARRAYS = {"f2": "F16", "f4": "F32", "f8": "F64"}
BROKEN = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    KeyError,
    ValueError,
    OverflowError,
    OSError,
    IndexError,
)
"""What :mod:`zipfile` raises for bytes that are no archive."""


def read_torch(data: bytes) -> Any:
    """What such a file holds: an array, or a dict with arrays among its values.

    Raises:
        ImportRefused: it is none, or holds something else than tensors.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        files = _files(archive, len(data))
    except ImportRefused:
        raise
    except BROKEN:
        raise ImportRefused("the archive is damaged") from None
    if files.get("byteorder", b"little").strip() != b"little":
        raise ImportRefused("its numbers are big-endian, which is not read")
    if "data.pkl" not in files:
        raise ImportRefused("it is a zip, but none that torch.save wrote: it lacks data.pkl")
    return _Arrays(files).of(read_pickle(files["data.pkl"]))


def _files(archive: zipfile.ZipFile, size: int) -> dict[str, bytes]:
    """All files by their names in the archive's one folder."""
    entries = archive.infolist()
    if len(entries) > MOST_TENSORS or sum(entry.file_size for entry in entries) > size:
        raise ImportRefused("the archive names more than it holds")
    found: dict[str, bytes] = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ImportRefused("the archive is compressed or encrypted; torch.save does neither")
        _, _, name = entry.filename.partition("/")
        if name in found:
            raise ImportRefused(f"the archive has {brief(name)} twice")
        found[name] = archive.read(entry)
    return found


class _Arrays:
    """The numbers of an archive's tensors; each storage is read once."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self._storages: dict[Storage, NDArray[Any]] = {}
        # A view may show numbers of its storage again, and a pickle may name a view again.
        self._budget = Budget(MOST_BYTES)

    def of(self, value: Any) -> Any:
        """The value with arrays for the tensors at its top."""
        if isinstance(value, dict):
            return {key: self._one(item) for key, item in value.items()}
        return self._one(value)

    def _one(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        return self._of_array(value) if isinstance(value, Array) else value

    def _of_tensor(self, tensor: Tensor) -> NDArray[Any]:
        storage = self._of_storage(tensor.storage)
        if len(tensor.size) != len(tensor.stride):
            raise ImportRefused("a tensor has another number of sizes than of strides")
        count, last = 1, tensor.offset
        for size, stride in zip(tensor.size, tensor.stride, strict=True):
            count *= size
            last += (size - 1) * stride
        if not count or last >= len(storage):
            raise ImportRefused("a tensor is empty, or reaches beyond its storage")
        self._budget.spend(count * storage.itemsize)
        steps = [stride * storage.itemsize for stride in tensor.stride]
        return as_strided(storage[tensor.offset :], tensor.size, steps, writeable=False).copy()

    def _of_storage(self, storage: Storage) -> NDArray[Any]:
        if storage not in self._storages:
            kind = STORAGES.get(storage.kind)
            if kind is None:
                raise ImportRefused(f"a tensor is a {brief(storage.kind)}, and no vector of floats")
            raw = self._files.get(f"data/{storage.key}")
            if raw is None:
                raise ImportRefused(f"the archive lacks the numbers {brief(storage.key)}")
            what = f"storage {brief(storage.key)}"
            self._storages[storage] = as_array(raw, kind, (storage.count,), what)
        return self._storages[storage]

    def _of_array(self, array: Array) -> NDArray[Any]:
        kind = ARRAYS.get(array.dtype)
        if kind is None:
            raise ImportRefused(f"an array is of type {brief(array.dtype)}, and not of floats")
        self._budget.spend(len(array.data))
        shape = array.shape[::-1] if array.columns_first else array.shape
        found = as_array(array.data, kind, shape, "an array")
        return np.ascontiguousarray(found.T) if array.columns_first else found
