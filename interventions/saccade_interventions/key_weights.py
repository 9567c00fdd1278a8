"""What score edits may add to single keys: vectors over the prompt's positions.

A plan has up to :data:`~saccade_kernels.controls.KEY_WEIGHTS` of them, by *slot*; a score edit says
which slot its heads add, and times what. Positions of generated tokens have 0 in every slot.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]

LARGEST_KEY_WEIGHT = 1e6
"""Neither a value of a key nor the weight of a head may be further from 0."""


@dataclass(frozen=True)
class KeyWeights:
    """One slot's values: those of ``spans`` (start, end exclusive), in their order; others are 0.

    ``digest`` is of the values and of where they lie; ``data`` are float32, little-endian.
    """

    digest: str
    spans: tuple[Span, ...]
    data: bytes

    @classmethod
    def pack(cls, values: NDArray[np.float32]) -> KeyWeights:
        """Wrap the values of all positions of a prompt, float32 [prompt length]."""
        edges = np.flatnonzero(np.diff(values != 0, prepend=False, append=False))
        spans = tuple((int(start), int(end)) for start, end in edges.reshape(-1, 2))
        data = b"".join(values[start:end].astype("<f4").tobytes() for start, end in spans)
        digest = hashlib.sha256(f"{spans}:".encode() + data).hexdigest()
        return cls(digest, spans, data)

    @property
    def end(self) -> int:
        """The first position behind all of its spans."""
        return max((end for _, end in self.spans), default=0)

    def unpack(self, length: int) -> NDArray[np.float32]:
        """The values of all positions of a prompt of ``length`` tokens, float32 [length]."""
        values, at = np.zeros(length, np.float32), 0
        found = np.frombuffer(self.data, dtype="<f4")
        for start, end in self.spans:
            values[start:end] = found[at : at + end - start]
            at += end - start
        return values
