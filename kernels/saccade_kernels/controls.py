"""The contract between plans and kernels: what one row of the control tables means.

A *program* is what the attention kernels do to the query rows that name it: a few numbers per
(layer, query head, key class). Every program in flight is one row of persistent tables on the
device (:mod:`~saccade_kernels.tables`); row 0 is the identity and is never written. For one query
row of one head, with scores ``z`` (scaled, soft-capped), key classes ``c(j)`` and visible keys
only:

    score   z'_j = (1 + scale_c) z_j + absolute_c |z_j| + bias_c + sum_s weight_s beta_sj
    A       = softmax(z')
    mass    m_c = sum of A over class c; if every gate holds (gate_weight . m >= gate_threshold):
            m' = transform m, and A'_j = A_j m'_c / m_c, so proportions inside a class are kept
    head    o' = gain * (A' v) + shift

A class without mass cannot receive any (nor one so faint that it would have to grow more than
1e30 times): what ``transform`` would give it returns to the other classes in proportion, and a row
in which no other class is left keeps its masses. Heads are *query* heads. This module knows heads,
layers and classes, never a request or a method.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

CLASSES = 8
"""Key classes per program; class 0 holds every key that nobody tagged."""

NEVER_ATTEND = 255
"""Tag of a key that no query may see."""

SINK_CLASS, EXEMPT_CLASS, PER_HEAD_CLASSES = 1, 2, 3
"""Of the classes that single heads may have of their own: their sinks, keys apart from both sinks
and all others, which are class 0; and how many there are."""

IDENTITY_ROW = 0
"""Row of the control tables, and of the tag table, that changes nothing."""

GATES = 2
"""Linear conditions a mass edit may be subject to."""

KEY_WEIGHTS = 4
"""Vectors over the keys, beta_s, that a score edit may add, each with a weight of every head."""

FloatArray = NDArray[np.float32]


class Edit(enum.IntFlag):
    """Which parts of the formula differ from the identity."""

    NONE = 0
    SCORE = 1
    MASS = 2
    HEAD = 4
    HIDE = 8


@dataclass(frozen=True, slots=True)
class ControlShape:
    """Sizes of one program: decoder layers, query heads and head dimension of the model."""

    layers: int
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Program:
    """The values of one table row, on the host. Shapes leave out the row dimension.

    All arrays are float32; L layers, H query heads, C = :data:`CLASSES`, S = :data:`KEY_WEIGHTS`.
    """

    scale: FloatArray  # [L, H, C]
    absolute: FloatArray  # [L, H, C]
    bias: FloatArray  # [L, H, C]
    weight: FloatArray  # [L, H, S]
    transform: FloatArray  # [L, H, C, C]
    gate_weight: FloatArray  # [L, H, GATES, C]
    gate_threshold: FloatArray  # [L, H, GATES]
    gain: FloatArray  # [L, H]
    shift: FloatArray  # [L, H, D]

    @classmethod
    def identity(cls, shape: ControlShape) -> Program:
        """A program that changes nothing; the starting point of every other one."""
        layers, heads = shape.layers, shape.heads
        eye = np.eye(CLASSES, dtype=np.float32)
        return cls(
            scale=np.zeros((layers, heads, CLASSES), np.float32),
            absolute=np.zeros((layers, heads, CLASSES), np.float32),
            bias=np.zeros((layers, heads, CLASSES), np.float32),
            weight=np.zeros((layers, heads, KEY_WEIGHTS), np.float32),
            transform=np.broadcast_to(eye, (layers, heads, CLASSES, CLASSES)).copy(),
            gate_weight=np.zeros((layers, heads, GATES, CLASSES), np.float32),
            gate_threshold=np.full((layers, heads, GATES), -np.inf, np.float32),
            gain=np.ones((layers, heads), np.float32),
            shift=np.zeros((layers, heads, shape.head_dim), np.float32),
        )

    def head_edits(self) -> NDArray[np.uint8]:
        """Which edits each head makes. Returns :class:`Edit` flags, uint8 [L, H]."""
        shifts = np.uint8(Edit.HEAD) * (self.shift != 0).any(-1)
        return np.asarray(kind_edits(self) | shifts, dtype=np.uint8)


class Kinds(Protocol):
    """What :func:`kind_edits` looks at; every field has the same leading dimensions."""

    @property
    def scale(self) -> FloatArray: ...
    @property
    def absolute(self) -> FloatArray: ...
    @property
    def bias(self) -> FloatArray: ...
    @property
    def weight(self) -> FloatArray: ...
    @property
    def transform(self) -> FloatArray: ...
    @property
    def gain(self) -> FloatArray: ...


def kind_edits(heads: Kinds) -> NDArray[np.uint8]:
    """Which edits heads make by all but their shifts: :class:`Edit` flags, uint8 [...]."""
    score = (heads.scale != 0) | (heads.absolute != 0) | (heads.bias != 0)
    flags = np.uint8(Edit.SCORE) * (score.any(-1) | (heads.weight != 0).any(-1))
    eye = np.eye(CLASSES, dtype=np.float32)
    flags |= np.uint8(Edit.MASS) * (heads.transform != eye).any(axis=(-1, -2))
    return np.asarray(flags | np.uint8(Edit.HEAD) * (heads.gain != 1), dtype=np.uint8)
