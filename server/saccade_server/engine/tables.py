"""The engine's copy of every plan in flight: control and tag tables on the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_interventions.plan import Plan
from saccade_kernels.controls import (
    IDENTITY_ROW,
    NEVER_ATTEND,
    ControlShape,
    ControlTables,
    Edit,
    Program,
    TagTable,
)
from saccade_server.engine.request import SiteCount
from saccade_server.engine.transfer import Uploader

MAX_UNIONS = 1024
"""Remembered sets of rows; a long-lived server sees more of them than are worth keeping."""


class DeviceTables:
    """Writes rows when plans come and reads counters when they go; see :class:`PlanTables`.

    Writes are queued behind the steps that were launched before, so a row may be handed on while
    a step of its former owner still runs.
    """

    def __init__(
        self,
        shape: ControlShape,
        control_rows: int,
        tag_rows: int,
        max_len: int,
        device: torch.device,
    ) -> None:
        self.controls = ControlTables.allocate(control_rows, shape, device)
        self.tags = TagTable.allocate(tag_rows, shape, max_len, device)
        self.shape = shape
        self._upload = Uploader(device)
        self._classes: dict[int, int] = {}
        self._edits: dict[int, tuple[Edit, ...]] = {}
        self._unions: dict[frozenset[int], tuple[Edit, ...]] = {}

    def write_program(self, row: int, program: Program) -> None:
        """Fill a control row."""
        assert row != IDENTITY_ROW
        names = [field.name for field in fields(program)]
        arrays = (getattr(program, name) for name in names)
        *values, edits = self._upload(*arrays, program.head_edits())
        for name, value in zip(names, values, strict=True):
            getattr(self.controls, name)[row].copy_(value)
        self.controls.edits[row].copy_(edits)
        self._edits[row] = program.edits()
        self._unions.clear()

    def open_tags(self, row: int, plan: Plan) -> None:
        """Fill a tag row with a plan's base tags and clear its counters."""
        (base,) = self._upload(plan.base_tags())
        self.tags.tags[row].fill_(plan.generated_tag)
        self.tags.tags[row, :, : plan.prompt_length].copy_(base)
        self.tags.weights[row].zero_()
        self.tags.hides[row].fill_(int(plan.hides))
        self.tags.moved[row].zero_()
        self._classes[row] = count_classes(plan)

    def classes(self, tag_rows: Iterable[int]) -> int:
        """Key classes that the kernels must tell apart for the sequences of these rows."""
        return max((self._classes[row] for row in tag_rows if row), default=1)

    def edits(self, rows: Iterable[int], hides: bool) -> tuple[Edit, ...]:
        """What a step does that uses these control rows, per layer; empty if it edits nothing."""
        edited = frozenset(row for row in rows if row)
        if not edited and not hides:
            return ()
        if edited not in self._unions:
            if len(self._unions) == MAX_UNIONS:
                self._unions.clear()
            union = [Edit.NONE] * self.shape.layers
            for row in edited:
                union = [a | b for a, b in zip(union, self._edits[row], strict=True)]
            self._unions[edited] = tuple(union)
        found = self._unions[edited]
        return tuple(edit | Edit.HIDE for edit in found) if hides else found

    def count_moved(self, tag_rows: Iterable[int]) -> torch.Tensor:
        """Counters of these rows as they are behind the steps launched so far: [n, layers, heads].

        A copy, on the device.
        """
        (index,) = self._upload(np.array(list(tag_rows), dtype=np.int64))
        return self.tags.moved.index_select(0, index)


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
    if plan.sinks is not None:
        tags += [as_sink for _, as_sink in plan.sinks.remap]
    used = 1 + max((tag for tag in tags if tag != NEVER_ATTEND), default=0)
    return max(used, plan.classes) if plan.masses else used
