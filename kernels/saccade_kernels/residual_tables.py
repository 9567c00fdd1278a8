"""Residual edits: their tables on the device, and the reference of the op.

:mod:`~saccade_kernels.residual` has the formula.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from saccade_kernels.residual import RESIDUAL_EDITS, RESIDUAL_VECTORS, ResidualFlag, ResidualProgram


@dataclass(frozen=True)
class ResidualTables:
    """All programs in flight, on the device; field shapes are ResidualProgram's behind [rows]."""

    bank: torch.Tensor  # float32 [slots, hidden_size]
    count: torch.Tensor
    reads: torch.Tensor
    writes: torch.Tensor
    numbers: torch.Tensor
    flags: torch.Tensor

    @classmethod
    def allocate(
        cls,
        rows: int,
        layers: int,
        hidden_size: int,
        slots: int = RESIDUAL_VECTORS,
        device: torch.device | str = "cpu",
    ) -> ResidualTables:
        """Make tables of ``rows`` rows that change nothing, and an empty bank."""
        program = ResidualProgram.identity(layers)
        tensors = {
            f.name: torch.from_numpy(getattr(program, f.name))
            .to(device)
            .expand(rows, *getattr(program, f.name).shape)
            .contiguous()
            for f in fields(program)
        }
        bank = torch.zeros(slots, hidden_size, dtype=torch.float32, device=device)
        return cls(bank=bank, **tensors)


def edit_residual(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    tables: ResidualTables,
    site: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Edit the rows of a packed step at one site. A row without edits keeps its bits.

    Args:
        hidden: [tokens, hidden_size], what the site sees.
        rows: int32 [tokens], the table row that each follows.
        site: number of the site, see :func:`~saccade_kernels.residual.site_of`.
        out: [tokens, hidden_size], where the result is written; may be ``hidden``.

    Returns:
        [tokens, hidden_size] of the same dtype. Arithmetic is float32, float64 for float64.
    """
    work = torch.promote_types(hidden.dtype, torch.float32)
    index = rows.long()
    count = tables.count[index, site]
    edited = base = hidden.to(work)
    for at in range(_most(count)):
        happens = (at < count)[:, None]
        flags = tables.flags[index, site, at][:, None]
        joined = (flags & ResidualFlag.JOINED) > 0
        base = torch.where(joined, base, edited) if _perhaps(joined) else edited
        slots = [
            found[index, site, at].long().where(happens[:, 0], 0)  # others may name no slot
            for found in (tables.reads, tables.writes)
        ]
        numbers = tables.numbers[index, site, at].to(work)
        changed = _edit(base, edited, tables.bank, slots, numbers, flags)
        edited = torch.where(happens, changed, edited)
    is_edited = (count > 0)[:, None]
    if out is None:
        return torch.where(is_edited, edited.to(hidden.dtype), hidden)
    return torch.where(is_edited, edited.to(hidden.dtype), hidden, out=out)


def _edit(
    base: torch.Tensor,
    edited: torch.Tensor,
    bank: torch.Tensor,
    slots: list[torch.Tensor],
    numbers: torch.Tensor,
    flags: torch.Tensor,
) -> torch.Tensor:
    """One edit of every row, which reads ``base`` and changes ``edited``, both [T, D].

    slots: those of r and w, [T] each; numbers [T, 6]; flags [T, 1].
    """
    read = write = bank[slots[0]].to(base.dtype)
    if _perhaps(slots[0] != slots[1]):
        write = bank[slots[1]].to(base.dtype)
    rms = base.square().mean(-1, keepdim=True).sqrt()
    p = (base * read).sum(-1, keepdim=True)
    changed = edited + _moved(p, numbers, flags, rms) * write
    diagonal = (flags & ResidualFlag.DIAGONAL) > 0
    if _perhaps(diagonal):
        each = edited + _moved(base, numbers, flags, rms) * read
        changed = torch.where(diagonal, each, changed)
    keeps = (flags & ResidualFlag.KEEP_NORM) > 0
    if not _perhaps(keeps):
        return changed
    before, after = (x.square().sum(-1, keepdim=True).sqrt() for x in (base, changed))
    keeps = keeps & (after > 0)
    return changed * torch.where(keeps, before / after, torch.ones_like(after))


def _moved(
    p: torch.Tensor, numbers: torch.Tensor, flags: torch.Tensor, rms: torch.Tensor
) -> torch.Tensor:
    """p' - p of coordinates [T, 1 or D]."""
    scale, shift, low, high, above, below = numbers[:, None].unbind(-1)
    size = torch.where((flags & ResidualFlag.SIGNED) > 0, p.sign(), torch.ones_like(p))
    size = torch.where((flags & ResidualFlag.RELATIVE) > 0, size * rms, size)
    delta = ((scale - 1) * p + shift * size).maximum(low - p).minimum(high - p)
    return torch.where((p >= above) & (p <= below), delta, torch.zeros_like(p))


def _most(count: torch.Tensor) -> int:
    """Edits of the row that has most of them, or may have: a device is not waited for."""
    if count.device.type != "cpu":
        return RESIDUAL_EDITS
    return int(count.max()) if count.numel() else 0


def _perhaps(mask: torch.Tensor) -> bool:
    """False if no element is true; on a device, which is not waited for, there may be one."""
    return mask.device.type != "cpu" or bool(mask.any())
