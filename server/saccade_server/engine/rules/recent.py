"""Key classes that depend on the distance to the query row: written ahead of each step.

A :class:`~saccade_interventions.rules.RecentRule` gives the keys just before a generated row
another class. From one row to the next the window moves on by one key, so before a step the tags of
the few positions that enter or leave a window are rewritten in all layers, in one write for all
sequences of the step. Positions are known to the host even if tokens are not, and the write is
queued behind the steps launched before. Nothing else writes these tags meanwhile: sinks that are
found belong to the prompt, whose rows see no window.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Batch

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.rules import RecentRule
from saccade_server.engine.rules.base import Asked, EngineParts, RuleHandler
from saccade_server.engine.scheduler import Chunk
from saccade_server.engine.sequence import Sequence

Window = tuple[int, int]
"""Key positions, end exclusive."""

Remap = tuple[tuple[int, int], ...]

NOTHING: Window = (0, 0)


class RecentHandler(RuleHandler[RecentRule]):
    """Keeps the window of every sequence whose plan has one.

    A class inside a window stands for one outside (see RecentRule), so a tag that leaves goes back
    to what it was in its layer, a sink's too.
    """

    kind = RecentRule

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        self._windows: dict[Sequence, Window] = {}

    def before(self, asked: Batch[Asked[RecentRule]]) -> None:
        """Queue what makes the tags those that the query rows of these chunks see."""
        windows: dict[Sequence, Window] = {}
        rows: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        tables: dict[Remap, int] = {}
        for rule, chunk, *_ in asked:
            sequence = chunk.sequence
            before, after = self._windows.get(sequence, NOTHING), window(chunk, rule)
            back = tuple((inside, outside) for outside, inside in rule.remap)
            windows[sequence] = after
            for remap, changed in (
                (rule.remap, _without(after, before)),
                (back, _without(before, after)),
            ):
                rows += [sequence.tag_row] * len(changed)
                positions += changed
                places += [tables.setdefault(remap, len(tables))] * len(changed)
        if positions:
            self._write(rows, positions, places, tables)
        self._windows |= windows

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._windows.pop(sequence, None)

    def _write(
        self, rows: list[int], positions: list[int], places: list[int], tables: Iterable[Remap]
    ) -> None:
        """Replace each named position's tag by its entry of a table, in every layer."""
        row, position, place, table = self.parts.upload(
            np.array(rows, dtype=np.int64),
            np.array(positions, dtype=np.int64),
            np.array(places, dtype=np.int64),
            np.stack([_table(remap) for remap in tables]),
        )
        there = self.parts.tables.tags.tags
        tags = there[row, :, position]  # [n, layers]
        there[row, :, position] = table[place[:, None], tags.long()]


def window(chunk: Chunk, rule: RecentRule) -> Window:
    """The keys that are recent to the chunk's query row; none in a prompt."""
    if chunk.start < chunk.sequence.prompt_length:
        return NOTHING
    assert chunk.length == 1, "rows with windows of their own run one at a time"
    start = max(rule.start, chunk.start - rule.width)
    return start, max(chunk.start + rule.with_self, start)


def _without(window: Window, other: Window) -> list[int]:
    """Positions of one window that are not in the other."""
    before = range(window[0], min(window[1], other[0]))
    behind = range(max(window[0], other[1]), window[1])
    return [*before, *behind]


def _table(remap: Remap) -> NDArray[np.uint8]:
    """What each tag becomes: uint8 [256]; a key that is never attended stays so."""
    table = np.arange(256, dtype=np.uint8)
    for old, new in remap:
        table[old] = new
    return table
