"""Interventions that should have run and did not: the count that must stay at zero.

A receipt says what ran. Whether there was anything to run on is known here without it: from the
length of the prompt and the number of tokens that came. An intervention that acts, has rows or
tokens to act on, and of which the engine reports nothing, was lost on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from saccade_interventions.base import Intervention
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_server.engine.request import Receipt
from saccade_server.requests.receipts import Run


class Finished(Protocol):
    """One sequence that has ended."""

    @property
    def run(self) -> Run: ...

    @property
    def last_row(self) -> int:
        """Position of the last row that must have run; -1: none must have."""
        ...


def noops(interventions: Sequence[Intervention], sequences: Sequence[Finished]) -> list[str]:
    """The methods that were lost, one for every intervention and sequence."""
    return [
        item.method_id()
        for index, item in enumerate(interventions)
        for sequence in sequences
        if _lost(index, sequence)
    ]


def _lost(index: int, sequence: Finished) -> bool:
    plan, receipt = sequence.run.plan, sequence.run.receipt
    if plan is None or receipt is None:
        return False
    edits = [edit for edit in plan.edits if edit.source == index]
    rules = any(rule.source == index and not rule.silent for rule in plan.rules)
    there = _phases(plan, sequence.last_row)
    phases = {phase for edit in edits for phase in edit.phases}
    if not (phases & there or (rules and there)):
        return False
    return not _reported(index, receipt) and not any(receipt.rows.get(phase) for phase in phases)


def _reported(index: int, receipt: Receipt) -> bool:
    """True if a rule of the intervention did something."""
    found = any(finding.source == index for finding in receipt.findings)
    return found or any(c.source == index and c.value for c in receipt.counters)


def _phases(plan: Plan, last: int) -> set[Phase]:
    """The phases of which the sequence must have had rows, up to position ``last``."""
    # Phases are runs of positions: each has a row at one of these places.
    places = (0, plan.question_start, plan.prompt_length - 1, last)
    return {plan.phase(position) for position in places if 0 <= position <= last}
