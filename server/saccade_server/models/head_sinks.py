"""Measuring, inside a forward pass, which keys are attention sinks of single heads (ACT).

Before the attention of a layer that edits masses by such classes runs, the rows concerned attend
once without the edit: that gives their normalisers, from these the weights of single rows or their
sums over the prompt, and from these the classes, which are written where attention then finds
them. Everything stays on the device.

Only the rows of sequences that ask are computed twice, and only in layers that they ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from saccade_kernels import ops
from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.controls import CLASSES
from saccade_kernels.head_sinks import HeadSinkCriterion, SumsSoFar
from saccade_server.models.attention import AttentionCall


@dataclass(frozen=True)
class AttentionSums:
    """Attention that each key of one sequence has got so far, in the heads that count, by layer.

    ``rows`` says how many query rows are in them, so that a row that is tried again counts once.
    """

    room: int  # keys the sequence may have in the end
    sums: dict[int, torch.Tensor] = field(default_factory=dict)  # [heads, room]
    rows: dict[int, int] = field(default_factory=dict)

    def before(self, layer: int, first: int, heads: int, like: torch.Tensor) -> torch.Tensor:
        """The sums that rows from ``first`` on find, [heads, room]; rows from 0 on start anew.

        ``like`` says their dtype and device.
        """
        if first == 0:
            self.sums[layer], self.rows[layer] = like.new_zeros(heads, self.room), 0
        return self.sums[layer]


@dataclass(frozen=True)
class Member:
    """What one sequence of a step asks: its classes in some heads, for its rows of this step.

    ``sums``: by all rows so far; None: by this row alone. ``least_rows``: see HeadSinkCriterion.
    """

    heads: Mapping[int, torch.Tensor]  # by layer, int64 [n] query heads
    table: torch.Tensor  # uint8 [layers, heads, max_len]: where the classes go
    start: int  # position of the first row
    end: int  # behind the last one
    criterion: HeadSinkCriterion
    least_rows: int
    sums: AttentionSums | None


@dataclass(frozen=True)
class HeadSinkMeasure:
    """An :class:`~saccade_server.models.attention.AttentionMeasure` for some sequences of a step.

    ``batch`` is the part of the step's batch that is theirs, all decodes or all prefills, without
    classes of single heads and with counters of its own; ``rows`` are its query rows in the step.
    """

    members: tuple[Member, ...]  # as in the batch
    rows: torch.Tensor  # int64 [R]
    first: torch.Tensor  # int32 [members], zeros
    batch: AttentionBatch

    @property
    def layers(self) -> frozenset[int]:
        """Where some sequence asks."""
        return frozenset(layer for member in self.members for layer in member.heads)

    def before(self, call: AttentionCall) -> None:
        """Find the classes of the layer and write them."""
        weights = self._weights(call)
        for index, member in enumerate(self.members):
            heads = member.heads.get(call.layer)
            if heads is None:
                continue
            own, kept, sums = weights[index], member.sums, None
            if kept is not None:
                values = kept.before(call.layer, member.start, len(heads), own)
                counts = kept.rows[call.layer] == member.start
                sums = SumsSoFar(values, counts, member.least_rows)
            table = member.table[call.layer]
            ops.settle_head_sinks(own, heads, member.end, member.criterion, sums, table)
            if kept is not None:
                kept.rows[call.layer] = max(kept.rows[call.layer], member.end)

    def after(self, call: AttentionCall, output: torch.Tensor) -> torch.Tensor:
        """Nothing: the classes have done their work."""
        return output

    def _weights(self, call: AttentionCall) -> torch.Tensor:
        """Attention before mass edits, summed over each member's rows: [members, heads, keys]."""
        query = call.query.index_select(0, self.rows)
        sites = query.shape[:2]
        emission = Emission(
            torch.empty(*sites, CLASSES, dtype=torch.float32, device=query.device),
            torch.empty(sites, dtype=torch.float32, device=query.device),
        )
        options = (call.layer, call.scale, call.softcap, call.window)
        replace(call, query=query, batch=self.batch).run(emission)
        measured = (query, call.key_cache, self.batch, *options, emission.lse)
        if self.batch.prefills:
            return ops.column_sums(*measured, self.first)
        return ops.attention_rows(*measured, self._every_row)

    @cached_property
    def _every_row(self) -> torch.Tensor:
        """The rows' places among themselves, int32, the same for all layers."""
        return torch.arange(len(self.rows), dtype=torch.int32, device=self.rows.device)
