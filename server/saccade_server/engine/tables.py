"""The engine's copy of every plan in flight: control and tag tables on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_interventions.plan import Plan
from saccade_kernels.controls import IDENTITY_ROW, NEVER_ATTEND, ControlShape, Edit
from saccade_kernels.packed import PackedProgram
from saccade_kernels.residual import ResidualProgram
from saccade_kernels.residual_tables import ResidualTables
from saccade_kernels.tables import ControlTables, PerHeadTable, TagTable
from saccade_server.engine.request import SiteCount
from saccade_server.engine.transfer import Uploader
from saccade_server.engine.writes import TableWrites
from saccade_server.models.residual import ResidualStep

MAX_UNIONS = 1024
"""Remembered sets of rows; a long-lived server sees more of them than are worth keeping."""

EDITS = tuple(Edit(flags) for flags in range(16))
"""Every combination of flags, by number."""


class DeviceTables:
    """Takes rows when plans come and reads counters when they go; see :class:`PlanTables`.

    What is said of rows waits until :meth:`flush`, which a step begins with. Writes are queued
    behind the steps that were launched before, so a row may be handed on while a step of its former
    owner still runs.
    """

    def __init__(
        self,
        shape: ControlShape,
        control_rows: int,
        tag_rows: int,
        max_len: int,
        device: torch.device,
        hidden_size: int,
        per_head_rows: int = 1,
        invariant: bool = False,
    ) -> None:
        """
        Args:
            invariant: what is computed by these tables depends on no neighbour, bit for bit.
        """
        self.invariant = invariant
        self._controls = ControlTables.allocate(control_rows, shape, device)
        self._tags = TagTable.allocate(tag_rows, shape, max_len, device)
        self.per_head_rows = per_head_rows
        self.shape = shape
        if device.type != "cpu":  # memory that is asked for later may be the cache's by then
            self.make_per_head()
        self._residuals = ResidualTables.allocate(
            control_rows, shape.layers, hidden_size, device=device
        )
        self._upload = Uploader(device)
        self._waiting = TableWrites()
        self._classes: dict[int, int] = {}
        self._edits: dict[int, NDArray[np.uint8]] = {}
        self._unions: dict[tuple[frozenset[int], bool], tuple[Edit, ...]] = {}
        self._residual_sites: dict[int, frozenset[int]] = {}

    @property
    def controls(self) -> ControlTables:
        """The control tables, with all that was said."""
        self.flush()
        return self._controls

    @property
    def tags(self) -> TagTable:
        """The tag table, with all that was said."""
        self.flush()
        return self._tags

    @property
    def residuals(self) -> ResidualTables:
        """The tables of residual edits, with all that was said."""
        self.flush()
        return self._residuals

    def flush(self) -> None:
        """Queue the writes of all that was said since the last time."""
        if self._waiting:
            self._waiting.flush(self._controls, self._tags, self._residuals, self._upload)

    def write_program(self, row: int, program: PackedProgram) -> None:
        """Fill a control row. It edits no sites until :meth:`write_residuals` says so."""
        assert row != IDENTITY_ROW
        self._waiting.programs[row] = program
        self._waiting.residuals.pop(row, None)
        self._note_edits(row, np.bitwise_or.reduce(program.head_edits, axis=1))
        self._residual_sites.pop(row, None)

    def write_residuals(self, row: int, program: ResidualProgram) -> None:
        """Fill the residual tables' row that belongs to a control row."""
        assert row != IDENTITY_ROW
        self._waiting.residuals[row] = program
        self._residual_sites[row] = program.sites

    def write_vector(self, slot: int, values: NDArray[np.float32]) -> None:
        """Fill a slot of the bank of vectors."""
        self._waiting.vectors[slot] = values

    def residual_step(self, rows: Iterable[int]) -> ResidualStep | None:
        """Edits at sites of a step whose rows follow these control rows; None if there are none."""
        if not self._residual_sites:
            return None
        found = frozenset[int]().union(*(self._residual_sites.get(row, ()) for row in rows))
        return ResidualStep(self.residuals, found) if found else None

    def write_heads(self, row: int, program: PackedProgram) -> None:
        """Put a program's head edits back into its row, without the gains measured since."""
        controls = self.controls
        heads = (program.gain[program.kind], program.shift[program.shifted], program.head_edits)
        for table, values in zip(
            (controls.gain, controls.shift, controls.edits), self._upload(*heads), strict=True
        ):
            table[row].copy_(values)

    def expect_gains(self, row: int, layers: Iterable[int]) -> None:
        """Note that a control row edits heads in ``layers``: the device will write gains there."""
        edits = self._edits[row].copy()
        edits[list(layers)] |= np.uint8(Edit.HEAD)
        self._note_edits(row, edits)

    def _note_edits(self, row: int, edits: NDArray[np.uint8]) -> None:
        self._edits[row] = edits
        self._unions.clear()

    def open_tags(self, row: int, plan: Plan) -> None:
        """Fill a tag row with a plan's base tags and clear its counters."""
        self._waiting.open(row, plan)
        self._classes[row] = count_classes(plan)

    def open_per_head(self, row: int, tag_row: int, plan: Plan) -> None:
        """Give the sequence of a tag row heads with key classes of their own: no sinks yet."""
        self.make_per_head()
        self._waiting.per_head[row] = tag_row, plan

    def make_per_head(self) -> None:
        """Have tables of key classes of single heads: on a CPU nothing is spent for them before."""
        if self._tags.per_head is not None:
            return
        rows, tags = self.per_head_rows, self._tags.tags
        max_len, device = tags.shape[2], tags.device
        made = PerHeadTable.allocate(tags.shape[0], rows, self.shape, max_len, device)
        self._tags = replace(self._tags, per_head=made)

    def classes(self, tag_rows: Iterable[int]) -> int:
        """Key classes that the kernels must tell apart for the sequences of these rows."""
        return max((self._classes[row] for row in tag_rows if row), default=1)

    def edits(self, rows: Iterable[int], hides: bool) -> tuple[Edit, ...]:
        """What a step whose rows follow these control rows edits in each layer; empty: nothing."""
        edited = frozenset(row for row in rows if row)
        if not edited and not hides:
            return ()
        found = self._unions.get((edited, hides))
        if found is None:
            if len(self._unions) == MAX_UNIONS:
                self._unions.clear()
            union = np.full(self.shape.layers, Edit.HIDE if hides else Edit.NONE, np.uint8)
            for row in edited:
                union |= self._edits[row]
            found = tuple(map(EDITS.__getitem__, union.tolist()))
            self._unions[edited, hides] = found
        return found

    def count_moved(self, tag_rows: Iterable[int]) -> torch.Tensor:
        """Counters of these rows as they are behind the steps launched so far: [n, layers, heads].

        A copy, on the device.
        """
        (index,) = self._upload(np.array(list(tag_rows), dtype=np.int64))
        return self.tags.moved.index_select(0, index)

    @contextmanager
    def uncounted(self, tag_rows: Iterable[int], unless_done: bool = False) -> Iterator[None]:
        """Let what is launched meanwhile leave the counters of these rows as they are.

        ``unless_done``: only if it fails, for then it will be launched again.
        """
        rows = list(tag_rows)
        if not rows:
            yield
            return
        (index,) = self._upload(np.array(rows, dtype=np.int64))
        before = self.tags.moved.index_select(0, index)
        try:
            yield
        except Exception:
            self.tags.moved.index_copy_(0, index, before)
            raise
        if not unless_done:
            self.tags.moved.index_copy_(0, index, before)


def sites(moved: NDArray[np.int32]) -> tuple[SiteCount, ...]:
    """Query rows whose masses changed, per (layer, head), of one sequence's counters."""
    found = np.argwhere(moved).tolist()
    return tuple(SiteCount(layer, head, int(moved[layer, head])) for layer, head in found)


def count_classes(plan: Plan) -> int:
    """Classes 0 to n - 1 that a plan can give to keys, or that its mass edits mention.

    A class that only a mass edit knows has no keys; it counts because what it would be given
    must go back to the others, which the kernels can only do for classes they look at.
    """
    tags = [run.tag for run in plan.tags] + [plan.generated_tag]
    retags = (rule.retags() for rule in plan.rules)
    tags += [changed for found in retags if found for _, changed in found.remap]
    used = 1 + max((tag for tag in tags if tag != NEVER_ATTEND), default=0)
    per_head = (rule.per_head() for rule in plan.rules)
    used = max(used, *(found.classes for found in per_head if found), 0)
    return max(used, plan.classes) if plan.masses else used
