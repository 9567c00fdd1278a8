"""A step of single tokens as it comes, packed from what is kept of its sequences (seats.py).

Where decodes are not padded: on a CPU, and on a GPU without graphs. What a step reads is what
:func:`batch.pack` would have written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from saccade_kernels.batch import PAGE, AttentionBatch
from saccade_server.engine.batch import Ints
from saccade_server.engine.drawn import DrawnRows
from saccade_server.engine.inputs import DecodeInputs, fill
from saccade_server.engine.seats import Roster, Seats
from saccade_server.engine.tables import DeviceTables
from saccade_server.engine.transfer import Uploader
from saccade_server.models.residual import ResidualStep


@dataclass(frozen=True)
class Singles:
    """A step of one row for each of a roster's sequences."""

    inputs: DecodeInputs  # on the device; the tokens are all known there
    attention: AttentionBatch
    residuals: ResidualStep | None

    @property
    def tokens(self) -> torch.Tensor:
        """int64 [rows]."""
        found: torch.Tensor = self.inputs.tokens
        return found

    @property
    def positions(self) -> torch.Tensor:
        """int64 [axes, rows]."""
        found: torch.Tensor = self.inputs.positions
        return found


class SinglesPacker:
    """Packs them for one engine."""

    def __init__(self, seats: Seats, tables: DeviceTables, axes: int, upload: Uploader) -> None:
        self._seats = seats
        self._tables = tables
        self._axes = axes
        self._upload = upload

    def pack(
        self, roster: Roster, starts: Ints, drawn_rows: DrawnRows, drawn: torch.Tensor
    ) -> Singles:
        """The rows at these positions.

        Args:
            drawn: the tokens of the step before, int64, by the rows that ``drawn_rows`` names.
        """
        count, known = len(starts), len(drawn)
        inputs = DecodeInputs.empty(count, self._axes, self._seats.width, count)
        inputs.sources[:] = np.arange(known, known + count)
        fill(inputs, self._seats, roster, starts, drawn_rows)
        longest = int(starts.max()) + 1
        arrays = self._upload(
            inputs.tokens,
            inputs.sources,
            inputs.positions,
            inputs.slots,
            inputs.context_lens,
            inputs.control_rows,
            inputs.tag_rows,
            inputs.searched[: len(roster.searched)],
            np.ascontiguousarray(inputs.page_table[:, : -(-longest // PAGE)]),
            np.arange(count + 1, dtype=np.int32),
        )
        *fields, ends = arrays
        there = DecodeInputs(*fields)
        if (inputs.sources < known).any():
            tokens = torch.cat([drawn, there.tokens]).index_select(0, there.sources)
            there = replace(there, tokens=tokens)
        rows, tags = set(inputs.control_rows.tolist()), set(roster.tag_rows.tolist())
        edits = self._tables.edits(rows, roster.hides)
        attention = AttentionBatch(
            slots=there.slots,
            query_starts=ends,
            context_lens=there.context_lens,
            page_table=there.page_table,
            num_decodes=count,
            max_context=longest,
            control_rows=there.control_rows,
            tag_rows=there.tag_rows,
            edits=edits,
            classes=self._tables.classes(tags) if edits else 1,
            per_head_classes=bool(edits) and roster.wanted.per_head_classes,
            controls=self._tables.controls if edits else None,
            tags=self._tables.tags if edits else None,
            invariant=self._tables.invariant,
        )
        return Singles(there, attention, self._tables.residual_step(rows))
