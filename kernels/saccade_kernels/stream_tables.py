"""Edits of the residual stream: their tables on the device, and the reference of the op.

:mod:`~saccade_kernels.streams` has the formula.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from saccade_kernels.controls import IDENTITY_ROW
from saccade_kernels.streams import STREAM_EDITS, STREAM_VECTORS, StreamFlag, StreamProgram


@dataclass(frozen=True)
class StreamTables:
    """All programs in flight, on the device; field shapes are StreamProgram's behind [rows]."""

    bank: torch.Tensor  # float32 [slots, hidden_size]: unit directions
    count: torch.Tensor
    vector: torch.Tensor
    numbers: torch.Tensor
    flags: torch.Tensor

    @classmethod
    def allocate(
        cls,
        rows: int,
        layers: int,
        hidden_size: int,
        slots: int = STREAM_VECTORS,
        device: torch.device | str = "cpu",
    ) -> StreamTables:
        """Make tables of ``rows`` rows that change nothing, and an empty bank."""
        program = StreamProgram.identity(layers + 1)
        tensors = {
            f.name: torch.from_numpy(getattr(program, f.name))
            .to(device)
            .expand(rows, *getattr(program, f.name).shape)
            .contiguous()
            for f in fields(program)
        }
        bank = torch.zeros(slots, hidden_size, dtype=torch.float32, device=device)
        return cls(bank=bank, **tensors)

    def write(self, row: int, program: StreamProgram) -> None:
        """Put ``program`` into table row ``row`` (never row 0, the identity)."""
        if row == IDENTITY_ROW:
            raise ValueError("row 0 of the stream tables is the identity and cannot be written")
        for f in fields(program):
            getattr(self, f.name)[row].copy_(torch.from_numpy(getattr(program, f.name)))


def stream(
    hidden: torch.Tensor, rows: torch.Tensor, tables: StreamTables, layer: int
) -> torch.Tensor:
    """Edit the residuals of a packed step. A row without edits keeps its bits.

    Args:
        hidden: [tokens, hidden_size], entering ``layer`` or, if that is the number of layers,
            leaving the last.
        rows: int32 [tokens], the table row that each follows.

    Returns:
        [tokens, hidden_size] of the same dtype. Arithmetic is float32, float64 for float64.
    """
    work = torch.promote_types(hidden.dtype, torch.float32)
    index = rows.long()
    count = tables.count[index, layer]
    edited = hidden.to(work)
    for at in range(STREAM_EDITS):
        happens = at < count
        slot = tables.vector[index, layer, at].long().where(happens, 0)  # others may name no slot
        changed = _edit(
            edited,
            tables.bank[slot].to(work),
            tables.numbers[index, layer, at].to(work),
            tables.flags[index, layer, at],
        )
        edited = torch.where(happens[:, None], changed, edited)
    return torch.where((count > 0)[:, None], edited.to(hidden.dtype), hidden)


def _edit(
    hidden: torch.Tensor, direction: torch.Tensor, numbers: torch.Tensor, flags: torch.Tensor
) -> torch.Tensor:
    """One edit of every row. hidden, direction [T, D]; numbers [T, 4]; flags [T]."""
    scale, shift, low, high = numbers.unbind(-1)
    p = (hidden * direction).sum(-1)
    size = torch.where((flags & StreamFlag.SIGNED) > 0, p.sign(), torch.ones_like(p))
    rms = hidden.square().mean(-1).sqrt()
    size = torch.where((flags & StreamFlag.RELATIVE) > 0, size * rms, size)
    delta = ((scale - 1) * p + shift * size).maximum(low - p).minimum(high - p)
    changed = hidden + delta[:, None] * direction
    before, after = hidden.square().sum(-1).sqrt(), changed.square().sum(-1).sqrt()
    keeps = ((flags & StreamFlag.KEEP_NORM) > 0) & (after > 0)
    factor = torch.where(keeps, before / after, torch.ones_like(p))
    return changed * factor[:, None]
