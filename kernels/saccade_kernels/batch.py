"""What one forward step's attention needs, and the one place that validates it.

A step is a packed ragged batch: ``tokens`` query rows of ``seqs`` sequences, decodes (one query
each) first, then prefill chunks. Keys live in a paged cache, :data:`PAGE` slots a page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from saccade_kernels.controls import CLASSES, Edit
from saccade_kernels.tables import ControlTables, PerHeadTable, TagTable

PAGE = 64
"""Cache slots in a page; one kernel tile reads one page, so a page id is a scalar there."""

LayerEdits = tuple[Edit, ...]
"""What a group of query rows does in each layer; empty: nothing at all."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive query rows of one prefill that follow the same program.

    ``span``: query rows of the whole prompt, one behind another, of which these are a part however
    the prompt is cut into chunks; 0 where that is not known, as of generated rows.
    """

    rows: int
    control_row: int
    edits: LayerEdits = ()
    span: int = 0


@dataclass(frozen=True, slots=True)
class Prefill:
    """What the host knows about one prefill, so that nobody has to ask the device."""

    queries: int
    context: int  # its entry of context_lens
    runs: tuple[Run, ...]  # of all its query rows, in order

    def edit(self, layer: int) -> Edit:
        """What some query row of it does in ``layer``."""
        edit = Edit.NONE
        for run in self.runs:
            if run.edits:
                edit |= run.edits[layer]
        return edit


@dataclass(frozen=True)
class Emission:
    """Where attention writes what it saw, if somebody asks. Before mass and head edits.

    A batch that emits has control and tag tables, even if it edits nothing. A row that sees no
    key has masses of 0 and a normaliser of -inf. Asking may change the last bits of the output.
    """

    masses: torch.Tensor  # float32 [tokens, heads, CLASSES]: attention mass of each class
    lse: torch.Tensor  # float32 [tokens, heads]: natural log of the sum of exponentiated scores

    def rows(self, rows: slice) -> Emission:
        """The part that belongs to some of the query rows."""
        return Emission(self.masses[rows], self.lse[rows])


@dataclass(frozen=True)
class AttentionBatch:
    """One step's queries, where their keys are, and which program each query row follows.

    In other engines ``query_starts`` is ``cu_seqlens``, ``slots`` is ``slot_mapping``, and
    ``page_table`` is ``block_table``.
    """

    slots: torch.Tensor  # int64 [tokens]: cache slot (page * PAGE + offset) of each new key
    query_starts: torch.Tensor  # int32 [seqs + 1]: first query row of each sequence
    context_lens: torch.Tensor  # int32 [seqs]: keys of each sequence, with this step's; 0: padding
    page_table: torch.Tensor  # int32 [seqs, max_pages]
    num_decodes: int  # leading sequences with exactly one query row
    max_context: int  # no decode has more keys; a captured batch has room for the longest
    control_rows: torch.Tensor  # int32 [tokens]: row of the control tables
    tag_rows: torch.Tensor  # int32 [seqs]: row of the tag table
    edits: LayerEdits = ()  # union over the decodes
    prefills: tuple[Prefill, ...] = ()  # the sequences behind the decodes
    classes: int = CLASSES  # more than any of a sequence that edits or emits, NEVER_ATTEND apart
    per_head_classes: bool = False  # some sequence has heads with key classes of their own
    settles: bool = False  # tags of a decode's earlier keys may change inside a layer
    controls: ControlTables | None = None
    tags: TagTable | None = None
    invariant: bool = False  # a row's bits depend on its own sequence alone, not on the batch
    derived: dict[Any, Any] = field(default_factory=dict)  # a backend's own, per step

    def edit(self, layer: int, sequence: int = 0) -> Edit:
        """What some query row of the sequence's group does in ``layer``: all decodes, or it."""
        if sequence >= self.num_decodes:
            return self.prefills[sequence - self.num_decodes].edit(layer)
        return self.edits[layer] if self.edits else Edit.NONE

    def tables(self) -> tuple[ControlTables, TagTable]:
        """Both tables of a batch that edits or emits anything."""
        assert self.controls is not None
        assert self.tags is not None
        return self.controls, self.tags

    def per_head_table(self) -> PerHeadTable:
        """The key classes of single heads, of a batch that has some."""
        tags = self.tables()[1]
        assert tags.per_head is not None
        return tags.per_head

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
        if max(self.context_lens[: self.num_decodes].tolist(), default=0) > self.max_context:
            raise ValueError("max_context is less than a decode's context_lens")
        if seqs and int(self.context_lens.max()) > self.page_table.shape[-1] * PAGE:
            raise ValueError("page_table is too narrow for context_lens")
        self._validate_prefills(lengths)
        edited = self.edits or any(run.edits for p in self.prefills for run in p.runs)
        if edited and (self.controls is None or self.tags is None):
            raise ValueError("edits without control and tag tables")
        if not 1 <= self.classes <= CLASSES:
            raise ValueError(f"classes must be 1 to {CLASSES}")

    def _validate_prefills(self, lengths: torch.Tensor) -> None:
        known = [(p.queries, p.context) for p in self.prefills]
        behind = slice(self.num_decodes, None)
        real = zip(lengths[behind].tolist(), self.context_lens[behind].tolist(), strict=True)
        if known != list(real):
            raise ValueError("prefills do not have the lengths that the tensors say")
        rows = [run.control_row for p in self.prefills for run in p.runs for _ in range(run.rows)]
        if rows != self.control_rows[self.num_decodes :].tolist():
            raise ValueError("the runs of prefills do not follow control_rows")


def _expect(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name}: expected {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
        )
