"""A program by the different heads that it has: few, however many layers and heads the model has.

A plan says the same of many heads, so what travels to the tables is one *kind* of head for each
thing that is said, which kind every head is of, and the vectors that single heads add. Tables are
filled from these on the device (see the engine's tables), and :meth:`PackedProgram.unpack` gives
the same numbers as a :class:`~saccade_kernels.controls.Program`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from saccade_kernels.controls import (
    CLASSES,
    GATES,
    KEY_WEIGHTS,
    ControlShape,
    Edit,
    FloatArray,
    Program,
    kind_edits,
)

OF_KINDS = (
    "scale",
    "absolute",
    "bias",
    "weight",
    "transform",
    "gate_weight",
    "gate_threshold",
    "gain",
)
"""Fields of a program that a kind of head has one of; ``shift`` goes by head."""


@dataclass(frozen=True)
class PackedProgram:
    """N kinds of heads, V shifts; everything else is as in :class:`Program`.

    Several programs that share their kinds are one: then P of them lie before [L, H].
    """

    kind: NDArray[np.int64]  # [L, H]: 0 to N - 1
    shifted: NDArray[np.int64]  # [L, H]: 0 to V - 1
    scale: FloatArray  # [N, C]
    absolute: FloatArray  # [N, C]
    bias: FloatArray  # [N, C]
    weight: FloatArray  # [N, KEY_WEIGHTS]
    transform: FloatArray  # [N, C, C]
    gate_weight: FloatArray  # [N, GATES, C]
    gate_threshold: FloatArray  # [N, GATES]
    gain: FloatArray  # [N]
    shift: FloatArray  # [V, D]

    @classmethod
    def identity(cls, shape: ControlShape) -> PackedProgram:
        """A program that changes nothing: one kind, and a shift of zeros."""
        sites = (shape.layers, shape.heads)
        return cls(
            kind=np.zeros(sites, np.int64),
            shifted=np.zeros(sites, np.int64),
            scale=np.zeros((1, CLASSES), np.float32),
            absolute=np.zeros((1, CLASSES), np.float32),
            bias=np.zeros((1, CLASSES), np.float32),
            weight=np.zeros((1, KEY_WEIGHTS), np.float32),
            transform=np.eye(CLASSES, dtype=np.float32)[None],
            gate_weight=np.zeros((1, GATES, CLASSES), np.float32),
            gate_threshold=np.full((1, GATES), -np.inf, np.float32),
            gain=np.ones(1, np.float32),
            shift=np.zeros((1, shape.head_dim), np.float32),
        )

    def fields(self) -> Iterator[tuple[str, FloatArray, NDArray[np.int64]]]:
        """Name, different values, and which of them every head has, of each field of a program."""
        for name in OF_KINDS:
            yield name, getattr(self, name), self.kind
        yield "shift", self.shift, self.shifted

    def unpack(self) -> Program:
        """The program head by head; of one program only."""
        return Program(**{name: values[index] for name, values, index in self.fields()})

    @cached_property
    def head_edits(self) -> NDArray[np.uint8]:
        """Which edits each head makes: :class:`Edit` flags, uint8 [L, H]."""
        shifts = np.uint8(Edit.HEAD) * (self.shift != 0).any(-1)
        flags = kind_edits(self)[self.kind] | shifts[self.shifted]
        return np.asarray(flags, dtype=np.uint8)


def join(programs: Sequence[PackedProgram]) -> PackedProgram:
    """Several programs as one, kinds behind one another; ``kind`` and ``shifted`` are [P, L, H]."""
    if len(programs) == 1:
        (only,) = programs
        return replace(only, kind=only.kind[None], shifted=only.shifted[None])
    kinds = np.cumsum([0, *(len(program.gain) for program in programs)])
    shifts = np.cumsum([0, *(len(program.shift) for program in programs)])
    return PackedProgram(
        kind=np.stack([p.kind + first for p, first in zip(programs, kinds[:-1], strict=True)]),
        shifted=np.stack(
            [p.shifted + first for p, first in zip(programs, shifts[:-1], strict=True)]
        ),
        **{
            name: np.concatenate([getattr(program, name) for program in programs])
            for name in (*OF_KINDS, "shift")
        },
    )
