"""What a plan may do to a forward pass: edits of scores, masses, heads and the residual stream.

Every edit names where it acts and the phases of the query rows it acts on; ``source`` is the place
of its intervention in the request. Edits are plain frozen data and carry no code.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.phases import Phase
from saccade_interventions.vectors import place_of
from saccade_kernels.residual import SiteKind

Sites = tuple[tuple[int, tuple[int, ...]], ...]
"""(layer, query heads) pairs, layers ascending."""

NO_LIMIT = float("inf")

UNIT_TOLERANCE = 1e-3
"""How far the length of a unit vector may be from 1."""

MOST_GAIN = 16.0
"""Largest factor that a head's output may get in all, whatever its sign: published gains stay below
4, and far above it the numbers of float16 and, chained over layers, of float32 overflow."""


@dataclass(frozen=True)
class TagRun:
    """Key positions ``start`` to ``end`` (exclusive) of the prompt have class ``tag``."""

    start: int
    end: int
    tag: int


@dataclass(frozen=True)
class Gate:
    """A condition on the class masses m of a query row: weights . m >= threshold."""

    weights: tuple[float, ...]
    threshold: float


@dataclass(frozen=True)
class Vectors:
    """Vectors that edits of a plan name by ``digest``: float32 [rows, size], content addressed."""

    digest: str
    rows: int
    size: int
    data: bytes

    @classmethod
    def pack(cls, values: NDArray[np.float32]) -> Vectors:
        """Wrap an array [rows, size]."""
        rows, size = values.shape
        data = np.ascontiguousarray(values, dtype="<f4").tobytes()
        digest = hashlib.sha256(b"%d x %d:" % (rows, size) + data).hexdigest()
        return cls(digest, rows, size, data)

    @cached_property
    def is_unit(self) -> NDArray[np.bool_]:
        """Which vectors have length 1, but for rounding: bool [rows]."""
        vectors = self.unpack()
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        return np.asarray(np.abs(lengths - 1) <= UNIT_TOLERANCE)

    def unpack(self) -> NDArray[np.float32]:
        """A read-only array [rows, size]."""
        return np.frombuffer(self.data, dtype="<f4").reshape(self.rows, self.size)


@dataclass(frozen=True)
class ScoreEdit:
    """z' = z + scale z + absolute |z| + bias on keys of the given classes, before softmax.

    On all keys, whatever their class, it adds ``weight`` times their values in a slot of the plan's
    key weights. A weight of 0 adds nothing: its values are in the slot for another edit to add.
    """

    sites: Sites
    phases: tuple[Phase, ...]
    classes: tuple[int, ...]
    scale: float = 0.0
    absolute: float = 0.0
    bias: float = 0.0
    source: int = 0
    slot: int | None = None
    weight: float = 0.0


@dataclass(frozen=True)
class MassEdit:
    """m' = transform m where all gates hold, after softmax; proportions inside a class kept.

    ``per_head_classes``: the classes are the heads' own, which a rule of the plan finds
    (``Rule.per_head``), and not those of the tags.
    """

    sites: Sites
    phases: tuple[Phase, ...]
    transform: tuple[tuple[float, ...], ...]
    gates: tuple[Gate, ...] = ()
    per_head_classes: bool = False
    source: int = 0


@dataclass(frozen=True)
class HeadEdit:
    """o' = gain o + shift, before the output projection.

    ``shift`` is the digest of vectors [heads of all sites in their order, head_dim], or None.
    """

    sites: Sites
    phases: tuple[Phase, ...]
    gain: float = 1.0
    shift: str | None = None
    source: int = 0


@dataclass(frozen=True)
class ResidualEdit:
    """Changes what a site holds, h of a row, in one coordinate p = h . r along one direction w.

    The coordinate becomes p', and nothing else of h changes:

        p' = clip(scale p + shift s, low, high),    h' = h + (p' - p) w    where above <= p <= below

    where s is 1, or sign(p) if ``signed``, times RMS(h) if ``relative``. Adding a vector is scale
    1; projecting it out is scale 0 without shift; clamping is scale 1 with limits. ``keep_norm``
    rescales h' to the norm of h.

    ``joined``: it reads the h that the edit before it read, so that several are one map of higher
    rank, which :meth:`PlanBuilder.residual` makes of them. ``diagonal``: the coordinates are h's
    own dimensions, p = h_d, and h'_d = h_d + (p' - p) r_d in each.

    ``layer`` and ``site`` say where: for residuals the one entering that layer, or, if it is the
    number of layers, the one leaving the last. r is row ``row`` of the vectors ``direction``; w is
    row ``onto`` of them, or r itself.
    """

    layer: int
    phases: tuple[Phase, ...]
    direction: str
    row: int
    scale: float = 1.0
    shift: float = 0.0
    low: float = -NO_LIMIT
    high: float = NO_LIMIT
    signed: bool = False
    relative: bool = False
    keep_norm: bool = False
    source: int = 0
    site: SiteKind = SiteKind.RESIDUAL
    onto: int | None = None
    above: float = -NO_LIMIT
    below: float = NO_LIMIT
    joined: bool = False
    diagonal: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        """Which rows of its vectors it names."""
        return (self.row,) if self.onto is None else (self.row, self.onto)

    @property
    def place(self) -> str:
        """Where it acts, in words."""
        return place_of(self.site, self.layer)


Edits = ScoreEdit | MassEdit | HeadEdit | ResidualEdit
