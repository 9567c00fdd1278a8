"""How long a sequence was in each of its states, and what its answer took besides its own rows.

Moments are of the engine's monotonic clock; only differences leave its process.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from saccade_server.engine.sequence import Sequence


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a sequence in the engine; None: it did not come so far.

    ``queued`` is from its arrival until it was first scheduled, or until it ended; ``prompt`` from
    there to its first token, or to its end where none is drawn, ``decode`` from there to its last
    token. ``extra_passes`` counts forward
    passes that computed a row beside the sequence's own before a token could be drawn: a branch's,
    or the last prompt row once more. It is by the place of the intervention that asked for them.
    """

    queued: float
    prompt: float | None = None
    decode: float | None = None
    preemptions: int = 0
    extra_passes: dict[int, int] = {}


def timing_of(leader: Sequence) -> Timing:
    """That of a sequence that ends now."""
    moments = leader.moments
    if not moments.scheduled:
        return Timing(queued=time.monotonic() - moments.arrived)
    queued = moments.scheduled - moments.arrived
    extra, preemptions = extra_passes(leader), leader.preemptions
    if not moments.first:
        return Timing(queued=queued, preemptions=preemptions, extra_passes=extra)
    return Timing(
        queued=queued,
        prompt=moments.first - moments.scheduled,
        decode=moments.last - moments.first,
        preemptions=preemptions,
        extra_passes=extra,
    )


def extra_passes(leader: Sequence) -> dict[int, int]:
    """Those so far, by the place of their intervention.

    A branch has one for every row from that of its prompt's last token on.
    """
    found = dict(leader.repeats)
    for branch in leader.branches:
        rows = branch.counted - branch.prompt_length + 1
        if rows > 0 and branch.source >= 0:
            found[branch.source] = found.get(branch.source, 0) + rows
    return found


class Moments:
    """When things happened to a sequence, in seconds; 0: they have not."""

    __slots__ = ("arrived", "first", "last", "scheduled")

    def __init__(self) -> None:
        self.arrived = 0.0
        self.scheduled = 0.0
        self.first = 0.0
        self.last = 0.0
