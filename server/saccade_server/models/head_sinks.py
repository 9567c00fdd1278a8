"""Measuring, inside a forward pass, which keys are attention sinks of single heads (ACT).

Before the attention of a layer that edits masses by such classes runs, the rows concerned attend
once without the edit, and the classes follow from what the keys got: written where attention then
finds them, on the device alone. A prompt's rows have one set, by the sums over all of them; a
decode has its own, by the sums that it is added to.

Only the rows of sequences that ask are computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from saccade_kernels import ops
from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.controls import CLASSES
from saccade_kernels.head_sinks import HeadSinkTables
from saccade_server.models.attention import AttentionCall


@dataclass(frozen=True)
class DecodeSinks:
    """An :class:`~saccade_server.models.attention.AttentionMeasure` for decodes of a step."""

    layers: frozenset[int]  # where some row asks
    rows: torch.Tensor  # int32 [n], the decodes that ask; -1: none
    tables: HeadSinkTables

    def before(self, call: AttentionCall) -> None:
        """Find the classes of the layer and write them, in one launch."""
        scores = (call.layer, call.scale, call.softcap, call.window)
        measured = (call.query, call.key_cache, call.batch, *scores)
        ops.find_head_sinks(*measured, self.rows, self.tables)

    def after(self, call: AttentionCall, output: torch.Tensor) -> torch.Tensor:
        """Nothing: the classes have done their work."""
        return output


@dataclass(frozen=True)
class PromptSinks:
    """The same for whole prompts of a step.

    ``batch`` is the part of the step's batch that is theirs, all prefills, without classes of
    single heads and with counters of its own; ``rows`` are its query rows in the step.
    """

    layers: frozenset[int]  # where some prompt asks
    rows: torch.Tensor  # int64 [R]
    first: torch.Tensor  # int32 [prompts], zeros
    batch: AttentionBatch
    tables: HeadSinkTables
    leaving: torch.Tensor  # int64: tag rows of those that have no such classes behind their prompt

    def before(self, call: AttentionCall) -> None:
        """Find the classes of the layer, and begin the sums that decodes go on with."""
        query = call.query.index_select(0, self.rows)
        sites = query.shape[:2]
        emission = Emission(
            torch.empty(*sites, CLASSES, dtype=torch.float32, device=query.device),
            torch.empty(sites, dtype=torch.float32, device=query.device),
        )
        replace(call, query=query, batch=self.batch).run(emission)
        scores = (call.layer, call.scale, call.softcap, call.window)
        measured = (query, call.key_cache, self.batch, *scores, emission.lse)
        received = ops.column_sums(*measured, self.first)
        ops.settle_prompt_sinks(received, self.batch, call.layer, self.tables)

    def after(self, call: AttentionCall, output: torch.Tensor) -> torch.Tensor:
        """Behind the last layer, let those go whose prompts alone have such classes."""
        if len(self.leaving) and call.layer == max(self.layers):
            self.batch.per_head_table().rows.index_fill_(0, self.leaving, 0)
        return output
