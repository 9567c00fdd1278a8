"""What one forward step's attention needs, and the one place that validates it.

A step is a packed ragged batch: ``tokens`` query rows of ``seqs`` sequences, decodes (one query
each) first, then prefill chunks. Keys live in a paged cache, :data:`PAGE` slots a page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from saccade_kernels.controls import ControlTables, Edit, TagTable

PAGE = 64
"""Cache slots in a page; one kernel tile reads one page, so a page id is a scalar there."""

LayerEdits = tuple[Edit, ...]
"""What a group of query rows does in each layer; empty: nothing at all."""


@dataclass(frozen=True)
class AttentionBatch:
    """One step's queries, where their keys are, and which program each query row follows."""

    slots: torch.Tensor  # int64 [tokens]: cache slot (page * PAGE + offset) of each new key
    query_starts: torch.Tensor  # int32 [seqs + 1]: first query row of each sequence
    context_lens: torch.Tensor  # int32 [seqs]: keys of each sequence, with this step's; 0: padding
    page_table: torch.Tensor  # int32 [seqs, max_pages]
    num_decodes: int  # leading sequences with exactly one query row
    max_context: int  # largest entry of context_lens
    control_rows: torch.Tensor  # int32 [tokens]: row of the control tables
    tag_rows: torch.Tensor  # int32 [seqs]: row of the tag table
    edits: LayerEdits = ()  # over the decodes, and prefills without an entry of their own
    prefill_edits: tuple[LayerEdits, ...] = ()  # of each prefill, so that none pays for another
    controls: ControlTables | None = None
    tags: TagTable | None = None
    derived: dict[Any, Any] = field(default_factory=dict)  # a backend's own, per step

    def edit(self, layer: int, sequence: int = 0) -> Edit:
        """What some query row of the sequence's group does in ``layer``: all decodes, or it."""
        edits = self.edits
        if self.prefill_edits and sequence >= self.num_decodes:
            edits = self.prefill_edits[sequence - self.num_decodes]
        return edits[layer] if edits else Edit.NONE

    def tables(self) -> tuple[ControlTables, TagTable]:
        """Both tables of a batch that edits anything."""
        assert self.controls is not None
        assert self.tags is not None
        return self.controls, self.tags

    def validate(self) -> None:
        """Check shapes, dtypes and ranges; reads the device, so for tests and debugging.

        Raises:
            ValueError: naming the field that is wrong.
        """
        seqs, tokens = self.context_lens.numel(), self.slots.numel()
        _expect("slots", self.slots, torch.int64, (tokens,))
        _expect("query_starts", self.query_starts, torch.int32, (seqs + 1,))
        _expect("context_lens", self.context_lens, torch.int32, (seqs,))
        _expect("control_rows", self.control_rows, torch.int32, (tokens,))
        _expect("tag_rows", self.tag_rows, torch.int32, (seqs,))
        _expect("page_table", self.page_table, torch.int32, (seqs, self.page_table.shape[-1]))
        lengths = self.query_starts.diff()
        if int(self.query_starts[0]) != 0 or int(self.query_starts[-1]) != tokens:
            raise ValueError("query_starts must run from 0 to the number of tokens")
        if not bool((lengths[: self.num_decodes] == 1).all()):
            raise ValueError("query_starts: the first num_decodes sequences have one query each")
        padded = self.context_lens == 0  # a slot without a sequence; its output is zeros
        if not bool(((lengths <= self.context_lens) | padded).all()):
            raise ValueError("context_lens: a sequence has more queries than keys")
        if seqs and int(self.context_lens.max()) != self.max_context:
            raise ValueError("max_context is not the largest of context_lens")
        if self.max_context > self.page_table.shape[-1] * PAGE:
            raise ValueError("page_table is too narrow for max_context")
        if self.prefill_edits and len(self.prefill_edits) != seqs - self.num_decodes:
            raise ValueError("prefill_edits must have one entry for each prefill")
        edited = self.edits or any(self.prefill_edits)
        if edited and (self.controls is None or self.tags is None):
            raise ValueError("edits without control and tag tables")


def _expect(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name}: expected {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
        )
