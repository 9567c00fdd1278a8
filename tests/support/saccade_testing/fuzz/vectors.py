"""Broken files of other programs' steering vectors, and pickles damaged in a whole archive."""

import io
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.numpy import save

from saccade_server.importing import ImportRefused, read_vectors
from saccade_testing.foreign_vectors import gguf_bytes, torch_bytes, vectors
from saccade_testing.fuzz.files import Reader

MANY = vectors((1, 2, 10), 16)
PICKLE = "data.pkl"


def _whole() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        gguf = gguf_bytes(Path(folder), MANY, method="diffmean")
    return {
        "gguf": gguf,
        "torch, tensors": torch_bytes({k: torch.from_numpy(v) for k, v in MANY.items()}),
        "torch, arrays": torch_bytes(MANY),
        "safetensors": save({f"direction.{layer}": v for layer, v in MANY.items()}),
    }


def _pickles() -> dict[str, bytes]:
    """The pickle inside of each torch file."""
    found = {}
    for form, data in _whole().items():
        if form.startswith("torch"):
            archive = zipfile.ZipFile(io.BytesIO(data))
            (name,) = (n for n in archive.namelist() if n.endswith(PICKLE))
            found[form] = archive.read(name)
    return found


def _around(pickle: bytes) -> bytes:
    """The torch file of tensors, whole, with another pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(TENSORS)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle if name.endswith(PICKLE) else old.read(name))
    return file.getvalue()


TENSORS = _whole()["torch, tensors"]
VECTORS: dict[str, Reader] = {
    "vectors": Reader(read_vectors, (ImportRefused,), _whole()),
    "pickles": Reader(lambda data: read_vectors(_around(data)), (ImportRefused,), _pickles()),
}
