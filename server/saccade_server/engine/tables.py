"""The engine's copy of every plan in flight: control and tag tables on the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from saccade_interventions.plan import Plan
from saccade_kernels.controls import ControlShape, ControlTables, Edit, Program, TagTable
from saccade_server.engine.request import SiteCount

MAX_UNIONS = 1024
"""Remembered sets of rows; a long-lived server sees more of them than are worth keeping."""


class DeviceTables:
    """Writes rows when plans come and reads counters when they go; see :class:`PlanTables`."""

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
        self._layers = shape.layers
        self._edits: dict[int, tuple[Edit, ...]] = {}
        self._unions: dict[frozenset[int], tuple[Edit, ...]] = {}

    def write_program(self, row: int, program: Program) -> None:
        """Fill a control row."""
        self.controls.write(row, program)
        self._edits[row] = program.edits()
        self._unions.clear()

    def open_tags(self, row: int, plan: Plan) -> None:
        """Fill a tag row with a plan's base tags and clear its counters."""
        tags = torch.full(self.tags.tags.shape[2:], plan.generated_tag, dtype=torch.uint8)
        tags[: plan.prompt_length] = torch.from_numpy(plan.base_tags())
        self.tags.tags[row] = tags.to(self.tags.tags.device)
        self.tags.weights[row] = 0.0
        self.tags.moved[row] = 0

    def edits(self, rows: Iterable[int], hides: bool) -> tuple[Edit, ...]:
        """What a step does that uses these control rows, per layer; empty if it edits nothing."""
        edited = frozenset(row for row in rows if row)
        if not edited and not hides:
            return ()
        if edited not in self._unions:
            if len(self._unions) == MAX_UNIONS:
                self._unions.clear()
            union = [Edit.NONE] * self._layers
            for row in edited:
                union = [a | b for a, b in zip(union, self._edits[row], strict=True)]
            self._unions[edited] = tuple(union)
        found = self._unions[edited]
        return tuple(edit | Edit.HIDE for edit in found) if hides else found

    def moved(self, row: int) -> tuple[SiteCount, ...]:
        """Query rows whose masses changed, per (layer, head), since the tag row was opened."""
        counts = self.tags.moved[row].tolist()
        return tuple(
            SiteCount(layer, head, rows)
            for layer, heads in enumerate(counts)
            for head, rows in enumerate(heads)
            if rows
        )
