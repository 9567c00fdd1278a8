"""Rows of the control tables and of the tag table: who holds which. No tensors.

Sequences with the same program share a control row, counted, unless the program is completed by
what is measured while the sequence runs. A row that nobody holds any more keeps its program, and is
*idle*, until it is needed for another, the longest idle first: the next request with the same
settings finds it by the program's fingerprint, and nothing is made or written. Every sequence with
a plan has a tag row of its own. Row 0 of either table is the identity and is never handed out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Protocol

from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_kernels.packed import PackedProgram
from saccade_kernels.residual import RESIDUAL_VECTORS, ResidualProgram
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.vectors import Direction, VectorBank, VectorSlots, directions

OWN = " of "
"""In the key of a program that no other sequence may share, before the sequence that has it."""


class PlanTables(VectorBank, Protocol):
    """Where rows are written; the runner's tables on the device."""

    def write_program(self, row: int, program: PackedProgram) -> None:
        """Fill a control row."""
        ...

    def expect_gains(self, row: int, layers: Iterable[int]) -> None:
        """Note that gains will be written into a control row on the device."""
        ...

    def write_residuals(self, row: int, program: ResidualProgram) -> None:
        """Say what a control row, just filled, does to residuals."""
        ...

    def open_tags(self, row: int, plan: Plan) -> None:
        """Fill a tag row with a plan's base tags and clear its counters."""
        ...

    def open_per_head(self, row: int, tag_row: int, plan: Plan) -> None:
        """Give the sequence of a tag row, just filled, heads with key classes of their own."""
        ...


class PlanRows:
    """Hands out table rows to sequences that carry plans."""

    def __init__(
        self,
        tables: PlanTables,
        control_rows: int,
        tag_rows: int,
        vectors: int = RESIDUAL_VECTORS,
        per_head_rows: int = 2,
    ) -> None:
        self._tables = tables
        self._free_per_head_rows = deque(range(1, per_head_rows))
        self._free_controls = deque(range(1, control_rows))
        self._free_tags = deque(range(1, tag_rows))
        self._row_of: dict[str, int] = {}
        self._key_of: dict[int, str] = {}
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._vectors = VectorSlots(tables, vectors)
        self._directions: dict[int, frozenset[Direction]] = {}

    @property
    def programs(self) -> int:
        """Different programs in flight."""
        return len(self._holders)

    @property
    def free_per_head_classes(self) -> int:
        """Sequences that could now get key classes of single heads."""
        return len(self._free_per_head_rows)

    def acquire(self, sequence: Sequence) -> bool:
        """Give ``sequence`` the rows its plan needs, once; they stay its own until released.

        Returns:
            False, with nothing taken, if there are too few free rows now.

        Raises:
            Exception: what writing the rows raised; nothing is taken then.
        """
        plan = sequence.plan
        if plan is None or sequence.tag_row:
            return True
        wanted = _programs(sequence, plan)
        if not self._free_tags or not self._has_room(wanted, plan):
            return False
        if self.wanted_per_head_classes([sequence]) > self.free_per_head_classes:
            return False
        try:
            self._fill(sequence, plan, wanted)
        except Exception:
            self.release(sequence)
            raise
        return True

    def wanted_per_head_classes(self, sequences: Iterable[Sequence]) -> int:
        """How many of these sequences still need key classes of single heads."""
        return sum(
            bool(sequence.needs.per_head_classes) and not sequence.per_head_row
            for sequence in sequences
        )

    def exchange(self, sequence: Sequence) -> bool:
        """Move a running sequence from the control rows of its former plan to those of its plan.

        The plans tag keys alike, so the tag row stays. Rows of the new plan are taken before former
        ones are let go, so a row of both plans is never without a holder:

            before     LAST: row 3, GENERATED: row 3       row 3 has two holders
            after      LAST: row 3, GENERATED: row 5       row 3 has one, row 5 has one

        Returns:
            False, with nothing changed, if there are too few free rows now.
        """
        plan = sequence.plan
        assert plan is not None
        wanted = _programs(sequence, plan)
        if not self._has_room(wanted, plan):
            return False
        former = list(sequence.control_rows.values())
        for phase, key in wanted.items():
            sequence.control_rows[phase] = self._hold(key, plan, phase)
        for row in former:
            self._let_go(row)
        return True

    def release(self, sequence: Sequence) -> None:
        """Take back whatever ``sequence`` holds."""
        if not sequence.tag_row:
            return
        self._free_tags.append(sequence.tag_row)
        sequence.tag_row = 0
        if sequence.per_head_row:
            self._free_per_head_rows.append(sequence.per_head_row)
            sequence.per_head_row = 0
        for row in sequence.control_rows.values():
            self._let_go(row)
        sequence.control_rows.clear()

    def _fill(self, sequence: Sequence, plan: Plan, wanted: dict[Phase, str]) -> None:
        """Take and write what is there; after an exception the sequence still holds a part."""
        sequence.tag_row = self._free_tags.popleft()
        self._tables.open_tags(sequence.tag_row, plan)
        if plan.needs.per_head_classes:
            sequence.per_head_row = self._free_per_head_rows.popleft()
            self._tables.open_per_head(sequence.per_head_row, sequence.tag_row, plan)
        for phase, key in wanted.items():
            sequence.control_rows[phase] = self._hold(key, plan, phase)

    def _has_room(self, wanted: dict[Phase, str], plan: Plan) -> bool:
        """True if rows and vectors are left for the programs that nobody has yet.

        Idle rows are given up for them, but none that is wanted.
        """
        fresh = {key for key in wanted.values() if key not in self._row_of}
        new = [directions(plan, phase) for phase, key in wanted.items() if key in fresh]
        named = frozenset[Direction]().union(*new)
        kept = {self._row_of[key] for key in wanted.values() if key in self._row_of}
        spare = deque(row for row in self._idle if row not in kept)
        if len(fresh) > len(self._free_controls) + len(spare):
            return False
        while len(fresh) > len(self._free_controls):
            self._give_up(spare.popleft())
        while spare and not self._vectors.has_room(named):
            self._give_up(spare.popleft())
        return self._vectors.has_room(named)

    def _let_go(self, row: int) -> None:
        self._holders[row] -= 1
        if self._holders[row] == 0:
            del self._holders[row]
            self._idle[row] = None
            if OWN in self._key_of[row]:  # what was measured is of no use to anybody else
                self._give_up(row)

    def _give_up(self, row: int) -> None:
        """Forget the program of an idle row, whose vectors go too."""
        del self._idle[row]
        del self._row_of[self._key_of.pop(row)]
        self._free_controls.append(row)
        self._vectors.release(self._directions.pop(row, ()))

    def _hold(self, key: str, plan: Plan, phase: Phase) -> int:
        row = self._row_of.get(key)
        if row is not None:
            self._idle.pop(row, None)
            self._holders[row] = self._holders.get(row, 0) + 1
            return row
        row = self._free_controls.popleft()
        self._row_of[key], self._key_of[row], self._holders[row] = row, key, 1
        try:
            self._write(row, plan, phase)
        except Exception:
            del self._holders[row]
            self._idle[row] = None
            self._give_up(row)
            raise
        return row

    def _write(self, row: int, plan: Plan, phase: Phase) -> None:
        self._tables.write_program(row, plan.packed(phase))
        for own, layers in plan.needs.own_programs:
            if own == phase:
                self._tables.expect_gains(row, layers)
        found = directions(plan, phase)
        if found:
            self._vectors.hold(found, plan)
            self._directions[row] = found
            self._tables.write_residuals(row, self._vectors.program(plan, phase))


def _programs(sequence: Sequence, plan: Plan) -> dict[Phase, str]:
    """Key of each edited phase's program; one that is completed by measuring is nobody else's."""
    own = {phase for phase, _ in plan.needs.own_programs}
    return {
        phase: f"{key}{OWN}{id(sequence)}" if phase in own else key
        for phase, key in plan.program_keys.items()
        if key is not None
    }
