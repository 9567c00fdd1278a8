"""Vectors of residual edits: who holds which slot of the bank, and programs that name slots.

No tensors. A vector is shared by all programs that name it, counted, and its slot is handed on
when the last of them is gone. Slot 0 belongs to nobody.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.edits import ResidualEdit
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_kernels.residual import ResidualFlag, ResidualProgram, site_of

Direction = tuple[str, int]
"""Digest of vectors, and the row among them."""


class VectorBank(Protocol):
    """Where vectors are written; the runner's bank on the device."""

    def write_vector(self, slot: int, values: NDArray[np.float32]) -> None:
        """Fill a slot with a vector, float32 [hidden_size]."""
        ...


class VectorSlots:
    """Hands out slots of the bank to programs."""

    def __init__(self, bank: VectorBank, slots: int) -> None:
        self._bank = bank
        self._free = deque(range(1, slots))
        self._slot_of: dict[Direction, int] = {}
        self._holders: Counter[Direction] = Counter()

    def has_room(self, wanted: Iterable[Direction]) -> bool:
        """True if all of these can be held at once now."""
        return len({found for found in wanted if found not in self._slot_of}) <= len(self._free)

    def hold(self, wanted: Iterable[Direction], plan: Plan) -> None:
        """Count one more holder of each of these directions; new ones are written.

        Nothing is counted if writing fails.
        """
        held: list[Direction] = []
        try:
            for found in wanted:
                self._holders[found] += 1
                held.append(found)
                if self._holders[found] == 1:
                    self._slot_of[found] = slot = self._free.popleft()
                    vectors = plan.vectors_of(found[0])
                    assert vectors is not None
                    self._bank.write_vector(slot, vectors[found[1]].copy())
        except Exception:
            self.release(held)
            raise

    def release(self, held: Iterable[Direction]) -> None:
        """Count one holder less of each."""
        for found in held:
            self._holders[found] -= 1
            if not self._holders[found]:
                del self._holders[found]
                self._free.append(self._slot_of.pop(found))

    def program(self, plan: Plan, phase: Phase) -> ResidualProgram:
        """What the rows of a phase undergo; its directions must be held."""
        program = ResidualProgram.identity(plan.shape.layers)
        for edit in plan.residuals:
            if phase in edit.phases:
                slots = [self._slot_of[edit.direction, row] for row in edit.rows]
                program.append(
                    site_of(edit.site, edit.layer),
                    slots[0],
                    (edit.scale, edit.shift, edit.low, edit.high),
                    _flags(edit),
                    write=slots[-1],
                    where=(edit.above, edit.below),
                )
        return program


def directions(plan: Plan, phase: Phase | None = None) -> frozenset[Direction]:
    """What the residual edits of a phase, or of all phases, name."""
    return frozenset(
        (edit.direction, row)
        for edit in plan.residuals
        if phase is None or phase in edit.phases
        for row in edit.rows
    )


def _flags(edit: ResidualEdit) -> ResidualFlag:
    flags = {
        ResidualFlag.SIGNED: edit.signed,
        ResidualFlag.RELATIVE: edit.relative,
        ResidualFlag.KEEP_NORM: edit.keep_norm,
        ResidualFlag.JOINED: edit.joined,
        ResidualFlag.DIAGONAL: edit.diagonal,
    }
    return ResidualFlag(sum(flag for flag, is_set in flags.items() if is_set))
