"""From the edits of one phase to the program that its query rows follow.

Heads that go through the same edits are of one kind, so work is done for each kind and not for each
head: an edit splits the kinds of its sites off and changes them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.edits import HeadEdit, MassEdit, ScoreEdit
from saccade_interventions.sites import Pairs, pairs
from saccade_kernels.controls import CLASSES, ControlShape, FloatArray
from saccade_kernels.packed import OF_KINDS, PackedProgram

Vectors = NDArray[np.float32]
Index = NDArray[np.int64]


class ProgramMaker:
    """Applies edits one after the other, starting from the identity."""

    def __init__(self, shape: ControlShape) -> None:
        made = PackedProgram.identity(shape)
        self._kind, self._shifted = made.kind, made.shifted
        self._kinds: dict[str, FloatArray] = {name: getattr(made, name) for name in OF_KINDS}
        self._shifts = made.shift

    def score(self, edit: ScoreEdit) -> None:
        """Score edits all read the unedited score, so their changes add."""
        classes = list(edit.classes)

        def change(kinds: dict[str, FloatArray]) -> None:
            kinds["scale"][:, classes] += np.float32(edit.scale)
            kinds["absolute"][:, classes] += np.float32(edit.absolute)
            kinds["bias"][:, classes] += np.float32(edit.bias)
            if edit.slot is not None:
                kinds["weight"][:, edit.slot] += np.float32(edit.weight)

        self._split(pairs(edit.sites), change)

    def mass(self, edit: MassEdit) -> None:
        """Mass edits chain in order; a gated one is alone, see chains.py."""
        classes = len(edit.transform)
        transform = np.eye(CLASSES, dtype=np.float64)
        transform[:classes, :classes] = edit.transform

        def change(kinds: dict[str, FloatArray]) -> None:
            for at, before in enumerate(kinds["transform"]):
                kinds["transform"][at] = (transform @ before).astype(np.float32)
            for index, gate in enumerate(edit.gates):
                kinds["gate_weight"][:, index, :classes] = gate.weights
                kinds["gate_threshold"][:, index] = gate.threshold

        self._split(pairs(edit.sites), change)

    def head(self, edit: HeadEdit, shift: Vectors | None) -> None:
        """Head edits chain in order: a later gain also scales an earlier shift.

        Args:
            shift: float32 [heads of all sites, head_dim], or None.
        """
        gain, sites = np.float32(edit.gain), pairs(edit.sites)

        def change(kinds: dict[str, FloatArray]) -> None:
            kinds["gain"] *= gain

        self._split(sites, change)
        found, which = _present(self._shifted[sites])
        vectors = gain * self._shifts[found]
        if shift is not None:
            vectors, which = vectors[which] + shift, np.arange(len(which))
        self._shifted[sites] = len(self._shifts) + which
        self._shifts = np.concatenate([self._shifts, vectors])

    def made(self) -> PackedProgram:
        """The program, without the kinds and shifts that no head has any more."""
        used, kind = _present(self._kind)
        kinds = {name: values[used] for name, values in self._kinds.items()}
        added, shifted = _present(self._shifted)
        return PackedProgram(
            kind=kind,
            shifted=shifted,
            shift=self._shifts[added],
            **kinds,
        )

    def _split(self, sites: Pairs, change: Callable[[dict[str, FloatArray]], None]) -> None:
        """Give the heads of ``sites`` kinds of their own, made from those that they have."""
        found, which = _present(self._kind[sites])
        split = {name: values[found] for name, values in self._kinds.items()}
        change(split)
        self._kind[sites] = len(self._kinds["gain"]) + which
        for name, values in split.items():
            self._kinds[name] = np.concatenate([self._kinds[name], values])


def _present(numbers: Index) -> tuple[Index, Index]:
    """The different numbers, ascending, and which of these each is. None may be below 0."""
    occurs = np.bincount(numbers.ravel()) > 0
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[numbers]
