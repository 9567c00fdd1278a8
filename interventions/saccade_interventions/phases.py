"""Which query rows an edit touches: four phases of a sequence, and the names users give them."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache

from saccade_interventions.errors import brief


class Phase(StrEnum):
    """Where a query row stands. The rows of a sequence are partitioned by these four."""

    PREFIX = "prefix"  # before the question: up to and including the last image
    QUESTION = "question"  # after the last image, without the last prompt row
    LAST = "last"  # the last prompt row, which predicts the first token
    GENERATED = "generated"


PHASES = tuple(Phase)
"""In the order of the rows."""

ROWS: dict[str, frozenset[Phase]] = {
    "prompt": frozenset({Phase.PREFIX, Phase.QUESTION, Phase.LAST}),
    "question": frozenset({Phase.QUESTION, Phase.LAST}),
    "last": frozenset({Phase.LAST}),
    "generated": frozenset({Phase.GENERATED}),
}
"""What a user may name as rows; several names join with ``+``."""

KNOWN = 64
"""Spellings that are remembered: methods ask for theirs several times."""


@lru_cache(KNOWN)
def parse_rows(rows: str) -> tuple[Phase, ...]:
    """Turn ``"question+generated"`` into phases.

    Raises:
        ValueError: a name is not in :data:`ROWS`.
    """
    chosen: set[Phase] = set()
    for name in rows.split("+"):
        if name not in ROWS:
            known = ", ".join(ROWS)
            raise ValueError(
                f"unknown rows {brief(name)}; use one or more of {known}, joined with +"
            )
        chosen |= ROWS[name]
    return tuple(phase for phase in Phase if phase in chosen)
