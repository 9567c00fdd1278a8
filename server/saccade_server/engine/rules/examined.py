"""Where a sequence's positions are that may be sinks: found once, and longer with the sequence."""

from __future__ import annotations

import numpy as np

from saccade_interventions.plan import Plan
from saccade_kernels.controls import NEVER_ATTEND
from saccade_server.engine.batch import Ints, slots_of
from saccade_server.engine.sequence import Sequence


class Examined:
    """Slots, positions and base classes of what is not hidden, from the first position on.

    Preemption takes the sequence's pages, and with them what is known here.
    """

    def __init__(self) -> None:
        self._admission = 0
        self._known: Ints = np.empty((3, 0), np.int64)
        self._end = 0

    def until(self, sequence: Sequence, end: int) -> Ints:
        """Those before ``end``: int64 [3, n], rows in the order above."""
        if self._admission != sequence.preemptions:
            self._admission = sequence.preemptions
            self._known, self._end = self._known[:, :0], 0
        if end > self._end:
            new = examined(sequence, self._end, end)
            self._known, self._end = np.concatenate([self._known, new], axis=1), end
        if end == self._end:
            return self._known
        return self._known[:, : int(np.searchsorted(self._known[1], end))]


def examined(sequence: Sequence, start: int, end: int) -> Ints:
    """The same from position ``start`` on."""
    assert sequence.plan is not None
    base = _base_tags(sequence.plan, start, end)
    at = np.flatnonzero(base != NEVER_ATTEND)
    return np.stack([slots_of(sequence.pages, start, end)[at], start + at, base[at]])


def _base_tags(plan: Plan, start: int, end: int) -> Ints:
    """Class of positions ``start`` to ``end`` if none is a sink: int64 [end - start]."""
    base = np.full(end - start, plan.generated_tag, dtype=np.int64)
    if start < plan.prompt_length:
        known = plan.base_tags()[start:end]
        base[: len(known)] = known
    return base
