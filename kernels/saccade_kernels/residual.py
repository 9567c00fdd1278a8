"""Edits of the residual stream and of what layers add to it: what one row of their tables means.

A row h at a site changes by edits, one after the other. Each has a coordinate p = h . r, which
becomes p', and a direction w along which it moves; nothing else of h changes:

    p' = clip(scale p + shift s, low, high),    h' = h + (p' - p) w    where above <= p <= below

where s is 1, or sign(p) (SIGNED), times RMS(h) (RELATIVE). Mostly r = w, a unit vector: a rank of
one. The difference p' - p is computed as clip((scale - 1) p + shift s, low - p, high - p), so
adding a vector adds exactly that, whatever p is. Three flags make more of it:

    JOINED      reads the h that the edit before it read, and adds its change to that edit's: k of
                them are a map of rank k, such as h + W (R h + b) or a projection on a subspace
    DIAGONAL    the coordinates are h's own: p = h_d in every dimension d, and h'_d = h_d +
                (p' - p) r_d; so h' = (1 + (scale - 1) r) h without shift, elementwise
    KEEP_NORM   rescales h' to the norm of the h that was read; of joined edits the last has it

What a row undergoes is written beside the attention program that it follows: row r of these tables
goes with row r of the control tables, and row 0 changes nothing. Sites are numbered as a forward
pass meets them, three a layer (:func:`site_of`). This module knows rows and sites, never a request
or a method.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESIDUAL_EDITS = 16
"""Edits of one site that a program has room for, joined ones counted singly."""

RESIDUAL_VECTORS = 1024
"""Vectors in use at a time; slot 0 of the bank is never handed out."""

EVERYWHERE = (-np.inf, np.inf)


class SiteKind(enum.IntEnum):
    """The sites of a layer, in the order in which it meets them."""

    RESIDUAL = 0
    """What enters the layer; behind the last layer, what leaves it."""

    ATTENTION_OUTPUT = 1
    """What attention adds to the residual."""

    MLP_OUTPUT = 2
    """What the MLP adds to it."""


def site_of(kind: SiteKind, layer: int) -> int:
    """The number of a site. The residual behind the last layer has the number of layers."""
    return len(SiteKind) * layer + kind


def kind_of(site: int) -> SiteKind:
    """Which of a layer's sites has this number."""
    return SiteKind(site % len(SiteKind))


def sites_of(layers: int) -> int:
    """How many sites a model has."""
    return site_of(SiteKind.RESIDUAL, layers) + 1


class ResidualFlag(enum.IntFlag):
    """Variations of one edit, see the formula."""

    NONE = 0
    SIGNED = 1
    RELATIVE = 2
    KEEP_NORM = 4
    JOINED = 8
    DIAGONAL = 16


@dataclass(frozen=True)
class ResidualProgram:
    """The values of one table row, on the host. S sites, E = :data:`RESIDUAL_EDITS`.

    The first ``count`` edits of a site happen, in order.
    """

    count: NDArray[np.int32]  # [S]
    reads: NDArray[np.int32]  # [S, E]: slot in the bank of r
    writes: NDArray[np.int32]  # [S, E]: slot of w; a DIAGONAL edit has none
    numbers: NDArray[np.float32]  # [S, E, 6]: scale, shift, low, high, above, below
    flags: NDArray[np.int32]  # [S, E]: ResidualFlag

    @classmethod
    def identity(cls, layers: int) -> ResidualProgram:
        """A program that changes nothing."""
        sites = sites_of(layers)
        numbers = np.empty((sites, RESIDUAL_EDITS, 6), np.float32)
        numbers[:] = 1, 0, *EVERYWHERE, *EVERYWHERE
        return cls(
            count=np.zeros(sites, np.int32),
            reads=np.zeros((sites, RESIDUAL_EDITS), np.int32),
            writes=np.zeros((sites, RESIDUAL_EDITS), np.int32),
            numbers=numbers,
            flags=np.zeros((sites, RESIDUAL_EDITS), np.int32),
        )

    def append(
        self,
        site: int,
        read: int,
        numbers: tuple[float, float, float, float],
        flags: ResidualFlag,
        write: int | None = None,
        where: tuple[float, float] = EVERYWHERE,
    ) -> None:
        """Add one more edit.

        Args:
            read: slot of r.
            numbers: scale, shift, low and high.
            write: slot of w; None: r itself.
            where: above and below.

        Raises:
            ValueError: the site has as many edits as fit, or none that this one could join.
        """
        at = int(self.count[site])
        if at == RESIDUAL_EDITS:
            raise ValueError(f"one site has at most {RESIDUAL_EDITS} edits")
        if flags & ResidualFlag.JOINED and not at:
            raise ValueError("there is no edit to join")
        self.reads[site, at] = read
        self.writes[site, at] = read if write is None else write
        self.numbers[site, at] = *numbers, *where
        self.flags[site, at] = flags
        self.count[site] += 1

    @property
    def sites(self) -> frozenset[int]:
        """Where it changes something."""
        return frozenset(np.flatnonzero(self.count).tolist())
