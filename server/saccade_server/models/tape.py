"""What a forward pass keeps for going back through its layers: activations of some of its rows.

A backward pass needs the inputs of all that is not linear. A step in fixed places writes them where
they are kept from the start, at no launch more (:class:`FixedTape`); any other step copies the rows
that somebody asks for (:class:`RowsTape`). Who needs an activation only once reads it on the way
(:class:`Readers`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from saccade_kernels.residual import SiteKind
from saccade_server.models.spec import DecoderSpec


class Activation(enum.Enum):
    """What is kept of a layer, [rows, ...] each. Behind the last layer there is the residual."""

    RESIDUAL = enum.auto()  # as the layer reads it, edits included
    MERGED = enum.auto()  # queries, keys and values, where heads have a norm
    QUERY = enum.auto()  # rotated, [rows, heads, head_dim]
    ATTENTION_OUTPUT = enum.auto()  # of the product, before a norm and edits; likewise of the MLP
    MIDDLE = enum.auto()  # the residual between attention and MLP
    GATES = enum.auto()  # gates and ups
    MLP_OUTPUT = enum.auto()
    EDITED_RESIDUAL = enum.auto()  # what the edits at a site read
    EDITED_ATTENTION = enum.auto()
    EDITED_MLP = enum.auto()


EDITED = {
    SiteKind.RESIDUAL: Activation.EDITED_RESIDUAL,
    SiteKind.ATTENTION_OUTPUT: Activation.EDITED_ATTENTION,
    SiteKind.MLP_OUTPUT: Activation.EDITED_MLP,
}
"""What is kept where a site is edited."""

OUTPUTS = {
    SiteKind.ATTENTION_OUTPUT: Activation.ATTENTION_OUTPUT,
    SiteKind.MLP_OUTPUT: Activation.MLP_OUTPUT,
}
"""What is kept of the products that halves of a layer end with.

Going back needs it where a norm follows. Where none does it is what edits at the site read.
"""


def wanted_of(spec: DecoderSpec) -> frozenset[Activation]:
    """What is kept of the layers of a decoder, where a site is edited too."""
    found = {
        Activation.RESIDUAL,
        Activation.QUERY,
        Activation.MIDDLE,
        Activation.GATES,
        *EDITED.values(),
    }
    found |= {Activation.MERGED} if spec.head_norms else set()
    found |= {Activation.ATTENTION_OUTPUT, Activation.MLP_OUTPUT} if spec.post_norms else set()
    return frozenset(found)


class Tape(Protocol):
    """Where a step's layers leave their activations, and where they are found again."""

    def room(self, what: Activation, layer: int) -> torch.Tensor | None:
        """Where this one may be written, [rows of the step, ...]; None: anywhere."""
        ...

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """Take what a layer has made, if it is wanted and not there already."""
        ...


@dataclass(frozen=True)
class RowsTape:
    """Copies of some rows of a step, from one layer on."""

    rows: torch.Tensor  # int64 [n]
    first: int
    wanted: frozenset[Activation]
    made: dict[tuple[Activation, int], torch.Tensor] = field(default_factory=dict)

    def room(self, what: Activation, layer: int) -> torch.Tensor | None:
        """See :class:`Tape`."""
        return None

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """See :class:`Tape`."""
        if layer >= self.first and what in self.wanted:
            self.made[what, layer] = made.index_select(0, self.rows)

    def read(self, what: Activation, layer: int) -> torch.Tensor:
        """Of its rows, [n, ...]."""
        return self.made[what, layer]


@dataclass(frozen=True)
class Readers:
    """Reads activations as they are made, and keeps nothing."""

    readers: Mapping[tuple[Activation, int], Sequence[Callable[[torch.Tensor], None]]]

    def room(self, what: Activation, layer: int) -> torch.Tensor | None:
        """See :class:`Tape`."""
        return None

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """See :class:`Tape`."""
        for reader in self.readers.get((what, layer), ()):
            reader(made)


@dataclass(frozen=True)
class Tapes:
    """Several tapes of one step, none of which has room of its own."""

    tapes: Sequence[Tape]

    def room(self, what: Activation, layer: int) -> torch.Tensor | None:
        """See :class:`Tape`."""
        return None

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """See :class:`Tape`."""
        for tape in self.tapes:
            tape.keep(what, layer, made)


def together(tapes: Sequence[Tape]) -> Tape | None:
    """One tape for all of these, none of which has room of its own; None if there are none."""
    return tapes[0] if len(tapes) == 1 else Tapes(tapes) if tapes else None


class FixedTape:
    """Room for the rows of the largest step, in all layers, at places that never change."""

    def __init__(self, spec: DecoderSpec, residuals: torch.Tensor) -> None:
        """``residuals``: room for what enters each layer, [layers, rows, hidden_size]."""
        self.residuals = residuals
        count, rows, width = residuals.shape
        shapes: dict[Activation, tuple[int, ...]] = dict.fromkeys(Activation, (width,))
        shapes[Activation.MERGED] = ((spec.heads + 2 * spec.kv_heads) * spec.head_dim,)
        shapes[Activation.QUERY] = (spec.heads, spec.head_dim)
        shapes[Activation.GATES] = (2 * spec.intermediate_size,)
        kinds = wanted_of(spec) - {Activation.RESIDUAL}
        names = [(kept, layer) for kept in kinds for layer in range(count)]
        names += [(kept, count) for kept in (Activation.RESIDUAL, Activation.EDITED_RESIDUAL)]
        self._places = {name: residuals.new_zeros((rows, *shapes[name[0]])) for name in names}
        del self._places[Activation.EDITED_RESIDUAL, 0]  # nothing goes back below it
        self._places |= {(Activation.RESIDUAL, layer): residuals[layer] for layer in range(count)}
        for kind, made in OUTPUTS.items():
            for layer in range(count) if made not in kinds else ():
                self._places[made, layer] = self._places[EDITED[kind], layer]
        self._rows = rows

    def of(self, rows: int) -> FixedTape:
        """The same for a step of so many rows."""
        made = FixedTape.__new__(FixedTape)
        made.residuals, made._places, made._rows = self.residuals, self._places, rows
        return made

    def room(self, what: Activation, layer: int) -> torch.Tensor | None:
        """See :class:`Tape`."""
        place = self._places.get((what, layer))
        return None if place is None else place[: self._rows]

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """See :class:`Tape`."""
        place = self.room(what, layer)
        if place is not None and made.data_ptr() != place.data_ptr():
            place.copy_(made)

    def read(self, what: Activation, layer: int) -> torch.Tensor:
        """Of all rows that there is room for, whatever step wrote them."""
        return self._places[what, layer]
