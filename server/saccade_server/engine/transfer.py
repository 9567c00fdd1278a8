"""Small arrays to the device, and results back, without waiting for the device.

On CUDA several arrays travel as one block through pinned memory. torch's caching host allocator
hands a pinned block out again only when every copy that was queued from or to it has run, so
nothing here keeps a ring of its own. On the CPU nothing is copied at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ALIGNMENT = 16
"""Bytes; enough for every dtype, and for vector loads."""

TORCH_DTYPES: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}


@dataclass(frozen=True)
class Field:
    """Where one array lies in a block of bytes."""

    start: int
    end: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Layout:
    """How several arrays share one block of bytes."""

    def __init__(self, arrays: Iterable[tuple[tuple[int, ...], Any]]) -> None:
        """Lay out arrays of the given shapes and numpy dtypes, in order."""
        self.fields: list[Field] = []
        self.size = 0
        for shape, kind in arrays:
            dtype = np.dtype(kind)
            end = self.size + prod(shape) * dtype.itemsize
            self.fields.append(Field(self.size, end, shape, dtype))
            self.size = -(-end // ALIGNMENT) * ALIGNMENT

    def arrays(self, block: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """The arrays, as views of a block on the host."""
        return [block[f.start : f.end].view(f.dtype).reshape(f.shape) for f in self.fields]

    def tensors(self, block: torch.Tensor) -> list[torch.Tensor]:
        """The same as views of a block on the device."""
        return [
            block[f.start : f.end].view(TORCH_DTYPES[f.dtype]).view(f.shape) for f in self.fields
        ]


def host_block(size: int, device: torch.device) -> torch.Tensor:
    """Bytes on the host that ``device`` can copy asynchronously; not initialised."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


class Uploader:
    """Puts host arrays on a device; whatever uses them must be queued on the current stream."""

    def __init__(self, device: torch.device, packed: bool | None = None) -> None:
        """``packed`` says whether arrays travel as one block; None: to another device only."""
        self.device = device
        self._packed = device.type != "cpu" if packed is None else packed

    def __call__(self, *arrays: NDArray[Any]) -> list[torch.Tensor]:
        """The arrays as tensors. On the CPU they share memory with them, so do not write either."""
        if not self._packed:
            return [torch.from_numpy(array) for array in arrays]
        layout = Layout((array.shape, array.dtype) for array in arrays)
        block = host_block(layout.size, self.device)
        for place, array in zip(layout.arrays(block.numpy()), arrays, strict=True):
            place[...] = array
        return layout.tensors(block.to(self.device, non_blocking=True))


class Download:
    """Tensors on their way to the host; the device need not have computed them yet."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = list(tensors)
        self._arrived: torch.cuda.Event | None = None
        if tensors and tensors[0].is_cuda:
            self._tensors = [_to_host(tensor) for tensor in tensors]
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> list[torch.Tensor]:
        """The tensors on the host, in order; waits for the device."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
