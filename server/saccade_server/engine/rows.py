"""Rows of the control tables and of the tag table: who holds which. No tensors.

Sequences with the same program share a control row, counted; every sequence with a plan has a tag
row of its own. Row 0 of either table is the identity and is never handed out.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_kernels.controls import Program
from saccade_server.engine.sequence import Sequence


class PlanTables(Protocol):
    """Where rows are written; the runner's tables on the device."""

    def write_program(self, row: int, program: Program) -> None:
        """Fill a control row."""
        ...

    def open_tags(self, row: int, plan: Plan) -> None:
        """Fill a tag row with a plan's base tags and clear its counters."""
        ...


class PlanRows:
    """Hands out table rows to sequences that carry plans."""

    def __init__(self, tables: PlanTables, control_rows: int, tag_rows: int) -> None:
        self._tables = tables
        self._free_controls = deque(range(1, control_rows))
        self._free_tags = deque(range(1, tag_rows))
        self._row_of: dict[str, int] = {}
        self._key_of: dict[int, str] = {}
        self._holders: dict[int, int] = {}

    @property
    def programs(self) -> int:
        """Different programs in flight."""
        return len(self._row_of)

    def acquire(self, sequence: Sequence) -> bool:
        """Give ``sequence`` the rows its plan needs, once; they stay its own until released.

        Returns:
            False, with nothing taken, if there are too few free rows now.
        """
        plan = sequence.plan
        if plan is None or sequence.tag_row:
            return True
        wanted = _programs(plan)
        fresh = {key for key in wanted.values() if key not in self._row_of}
        if len(fresh) > len(self._free_controls) or not self._free_tags:
            return False
        sequence.tag_row = self._free_tags.popleft()
        self._tables.open_tags(sequence.tag_row, plan)
        for phase, key in wanted.items():
            sequence.control_rows[phase] = self._hold(key, plan, phase)
        return True

    def release(self, sequence: Sequence) -> None:
        """Take back whatever ``sequence`` holds."""
        if not sequence.tag_row:
            return
        self._free_tags.append(sequence.tag_row)
        sequence.tag_row = 0
        for row in sequence.control_rows.values():
            self._holders[row] -= 1
            if self._holders[row] == 0:
                del self._holders[row]
                del self._row_of[self._key_of.pop(row)]
                self._free_controls.append(row)
        sequence.control_rows.clear()

    def _hold(self, key: str, plan: Plan, phase: Phase) -> int:
        row = self._row_of.get(key)
        if row is None:
            row = self._free_controls.popleft()
            self._tables.write_program(row, plan.program(phase))
            self._row_of[key] = row
            self._key_of[row] = key
            self._holders[row] = 0
        self._holders[row] += 1
        return row


def _programs(plan: Plan) -> dict[Phase, str]:
    keys = {phase: plan.program_key(phase) for phase in Phase}
    return {phase: key for phase, key in keys.items() if key is not None}
