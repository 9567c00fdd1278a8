"""What has been said of table rows since the last step, written to the device in one go.

Everything travels as one block (see transfer.py), and every table is written once, whatever the
number of its rows. A row that is said twice gets what was said last. What fails stays to be written
again: nothing is ever launched over rows that were not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_interventions.plan import Plan
from saccade_kernels.packed import PackedProgram, join
from saccade_kernels.residual import ResidualProgram
from saccade_kernels.residual_tables import ResidualTables
from saccade_kernels.tables import ControlTables, TagTable
from saccade_server.engine.transfer import Uploader

Write = Callable[[Sequence[torch.Tensor]], None]
"""Fills a table with arrays that have reached the device."""


class Block:
    """Arrays that reach the device in one copy, and the writes of tables that take them."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[Any]] = []
        self._writes: list[tuple[int, int, Write]] = []

    def add(self, arrays: Sequence[NDArray[Any]], write: Write) -> None:
        """Take arrays along for one write."""
        first = len(self._arrays)
        self._arrays += arrays
        self._writes.append((first, len(self._arrays), write))

    def send(self, upload: Uploader) -> None:
        """Copy, then write, in the order of :meth:`add`."""
        there = upload(*self._arrays)
        for first, end, write in self._writes:
            write(there[first:end])


@dataclass
class TableWrites:
    """New contents of rows, and of slots of the bank, that the tables do not hold yet."""

    tags: dict[int, Plan] = field(default_factory=dict)
    per_head: dict[int, tuple[int, Plan]] = field(default_factory=dict)  # and the tag row of each
    programs: dict[int, PackedProgram] = field(default_factory=dict)
    residuals: dict[int, ResidualProgram] = field(default_factory=dict)
    vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        waiting = (self.tags, self.per_head, self.programs, self.residuals, self.vectors)
        return any(waiting)

    def open(self, tag_row: int, plan: Plan) -> None:
        """Take a tag row whose former owner's per-head classes are nobody's any more."""
        self.tags[tag_row] = plan
        for row in [row for row, (other, _) in self.per_head.items() if other == tag_row]:
            del self.per_head[row]

    def flush(
        self, controls: ControlTables, tags: TagTable, residuals: ResidualTables, upload: Uploader
    ) -> None:
        """Queue all of it on the device."""
        block = Block()
        if self.tags:
            _add_tags(block, self.tags, tags)
        for row, (tag_row, plan) in self.per_head.items():
            _add_per_head(block, row, tag_row, plan, tags)
        if self.programs:
            _add_programs(block, self.programs, controls)
            _clear_residuals(block, self.programs, residuals)
        if self.residuals:
            _add_residuals(block, self.residuals, residuals)
        if self.vectors:
            _add_vectors(block, self.vectors, residuals)
        block.send(upload)
        for waiting in (self.tags, self.per_head, self.programs, self.residuals, self.vectors):
            waiting.clear()


def _put(table: torch.Tensor, rows: Sequence[int], at: torch.Tensor, values: torch.Tensor) -> None:
    """Fill rows of a table with values [rows, ...]; ``at`` are the rows on the device.

    One launch where that is not one for each row: index_copy_ takes many times as long on a CPU.
    """
    if len(rows) > 1 and table.device.type != "cpu":
        table.index_copy_(0, at, values)
        return
    for row, value in zip(rows, values, strict=True):
        table[row].copy_(value)


def _rows(rows: Any) -> NDArray[np.int64]:
    return np.fromiter(rows, np.int64, len(rows))


def _add_tags(block: Block, plans: dict[int, Plan], table: TagTable) -> None:
    """Base tags, key weights and no counts, over whatever the rows' former owners left."""
    layers, length = table.tags.shape[1:]
    base = np.empty((len(plans), 1, length), np.uint8)
    for row, plan in zip(base, plans.values(), strict=True):
        row[0, : plan.prompt_length] = plan.base_tags()
        row[0, plan.prompt_length :] = plan.generated_tag
    hides = np.array([plan.hides for plan in plans.values()], np.uint8)

    known = list(plans)
    weighed = [row for row, plan in plans.items() if plan.key_weights]
    prompts = [_key_weights(plans[row]) for row in weighed]

    def write(there: Sequence[torch.Tensor]) -> None:
        rows, tags, hidden, *weights = there
        _put(table.tags, known, rows, tags.expand(-1, layers, -1))
        table.hides.index_copy_(0, rows, hidden)
        table.weights.index_fill_(0, rows, 0)
        for row, own in zip(weighed, weights, strict=True):
            table.weights[row, : own.shape[0], : own.shape[1]].copy_(own)
        table.moved.index_fill_(0, rows, 0)
        if table.per_head is not None:
            table.per_head.rows.index_fill_(0, rows, 0)

    block.add([_rows(plans), base, hides, *prompts], write)


def _key_weights(plan: Plan) -> NDArray[np.float32]:
    """Values of a plan's slots, up to the last key that has any: float32 [slots, keys]."""
    end = max(slot.end for slot in plan.key_weights)
    return np.stack([slot.unpack(end) for slot in plan.key_weights])


def _add_per_head(block: Block, row: int, tag_row: int, plan: Plan, tags: TagTable) -> None:
    """Heads with key classes of their own, which have no sinks yet."""
    table = tags.per_head
    found = next((some for rule in plan.rules if (some := rule.per_head())), None)
    assert found is not None
    assert table is not None
    listed = np.zeros(table.heads.shape[1:], np.uint8)
    for layer, heads in found.sites:
        listed[layer, list(heads)] = 1

    def write(there: Sequence[torch.Tensor]) -> None:
        table.rows[tag_row].fill_(row)
        table.heads[row].copy_(there[0])
        table.classes[row].zero_()
        if found.initial:
            table.classes[row, ..., 0].fill_(found.initial)

    block.add([listed], write)


def _add_programs(
    block: Block, programs: dict[int, PackedProgram], controls: ControlTables
) -> None:
    """Every field of every row: kinds of heads, spread over the heads on the device."""
    joined = join(list(programs.values()))
    sites = joined.kind.shape
    edits = np.stack([program.head_edits for program in programs.values()])
    known = list(programs)
    names, values = [], []
    for name, different, _ in joined.fields():
        one = bool((different == different[:1]).all())
        names.append((name, one))
        values.append(different[:1] if one else different)

    def write(there: Sequence[torch.Tensor]) -> None:
        rows, kind, shifted, flags, *fields_there = there
        _put(controls.edits, known, rows, flags)
        for (name, one), found in zip(names, fields_there, strict=True):
            own = found.shape[1:]
            if one:
                spread = found.expand(*sites, *own)
            else:
                index = shifted if name == "shift" else kind
                spread = found.index_select(0, index.view(-1)).view(*sites, *own)
            _put(getattr(controls, name), known, rows, spread)

    block.add([_rows(programs), joined.kind, joined.shifted, edits, *values], write)


def _clear_residuals(
    block: Block, programs: dict[int, PackedProgram], residuals: ResidualTables
) -> None:
    """Rows that were filled anew edit no residuals until somebody says so."""
    block.add([_rows(programs)], lambda there: _fill(residuals.count, there[0]))


def _fill(table: torch.Tensor, rows: torch.Tensor) -> None:
    table.index_fill_(0, rows, 0)


def _add_residuals(
    block: Block, programs: dict[int, ResidualProgram], residuals: ResidualTables
) -> None:
    names = [own.name for own in fields(ResidualProgram)]
    known = list(programs)
    stacked = [np.stack([getattr(p, name) for p in programs.values()]) for name in names]

    def write(there: Sequence[torch.Tensor]) -> None:
        rows, *values = there
        for name, value in zip(names, values, strict=True):
            _put(getattr(residuals, name), known, rows, value)

    block.add([_rows(programs), *stacked], write)


def _add_vectors(
    block: Block, vectors: dict[int, NDArray[np.float32]], residuals: ResidualTables
) -> None:
    known = list(vectors)

    def write(there: Sequence[torch.Tensor]) -> None:
        slots, values = there
        _put(residuals.bank, known, slots, values)

    block.add([_rows(vectors), np.stack(list(vectors.values()))], write)
