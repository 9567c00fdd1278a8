"""Safetensors files of vectors of any name."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from saccade_interventions.errors import brief
from saccade_server.importing.found import MOST_TENSORS, ImportRefused, as_array


def read_safetensors(data: bytes) -> dict[str, NDArray[Any]]:
    """All tensors by name.

    Raises:
        ImportRefused: it is no such file, or a tensor is not of floats.
    """
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, TypeError, OverflowError):
        message = "the file is neither GGUF nor safetensors, nor what torch.save writes"
        raise ImportRefused(message) from None
    if len(entries) > MOST_TENSORS:
        raise ImportRefused("the file has more tensors than a control vector")
    return {
        name: as_array(bytes(entry["data"]), entry["dtype"], entry["shape"], brief(name))
        for name, entry in entries
    }
