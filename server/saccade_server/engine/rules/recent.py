"""Key classes that depend on the distance to the query row: written ahead of each step.

A :class:`~saccade_interventions.rules.RecentRule` gives the keys just before a generated row
another class. From one row to the next the window moves on by one key, so before a step the tags of
the few positions that enter or leave a window are rewritten in all layers, in one write for all
sequences of the step. Positions are known to the host even if tokens are not, and the write is
queued behind the steps launched before; of a padded step it is a stage ahead. Nothing else writes
these tags meanwhile: sinks that are found belong to the prompt, whose rows see no window.

    width 3, row 20, then 21:   17 18 19 are recent;   17 leaves, 20 enters:   18 19 20
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Batch
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_interventions.rules import RecentRule
from saccade_kernels.controls import CLASSES
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.rules.base import Asked, EngineParts, RuleHandler
from saccade_server.engine.seats import Roster
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Parameter, Stage, StepRows, doubling

Window = tuple[int, int]
"""Key positions, end exclusive."""

Remap = tuple[tuple[int, int], ...]

NOTHING: Window = (0, 0)


class Change(NamedTuple):
    """A key whose tag becomes another in every layer."""

    tag_row: int
    position: int
    remap: Remap


class Move(NamedTuple):
    """The last move of a window: the position of the row that it was for, and between what."""

    position: int
    before: Window
    after: Window


NO_MOVE = Move(-1, NOTHING, NOTHING)


class RecentHandler(RuleHandler[RecentRule]):
    """Keeps the last move of the window of every sequence whose plan has one.

    A class inside a window stands for one outside (see RecentRule), so a tag that leaves goes back
    to what it was in its layer, a sink's too.
    """

    kind = RecentRule

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        self._moves: dict[Sequence, Move] = {}

    def stages(self, outputs: StepOutputs) -> Batch[Stage]:
        """What moves the windows ahead of a padded step."""
        return (WindowStage(self, self.parts.tables.tags.tags, outputs.most),)

    def before(self, asked: Batch[Asked[RecentRule]]) -> None:
        """Queue what makes the tags those that the query rows of these chunks see."""
        self.write(self.changes((a.chunk.sequence, a.rule, a.chunk.start) for a in asked))

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._moves.pop(sequence, None)

    def changes(self, rows: Iterable[tuple[Sequence, RecentRule, int]]) -> list[Change]:
        """What must be written for query rows at these positions, which is taken for done.

        A step that fails may have written it or not; its rows are launched again at once. So a row
        at the position of the one before has the same changes: made twice, they change nothing.
        """
        found: list[Change] = []
        for sequence, rule, position in rows:
            last = self._moves.get(sequence, NO_MOVE)
            before = last.before if last.position == position else last.after
            after = window(position, sequence.prompt_length, rule)
            back = tuple((inside, outside) for outside, inside in rule.remap)
            row = sequence.tag_row
            found += [Change(row, key, rule.remap) for key in _without(after, before)]
            found += [Change(row, key, back) for key in _without(before, after)]
            self._moves[sequence] = Move(position, before, after)
        return found

    def write(self, changes: Batch[Change]) -> None:
        """Queue these changes, each of another key."""
        if changes:
            arrays = arranged(changes)
            change_tags(self.parts.tables.tags.tags, *self.parts.upload(*arrays))


class WindowStage(Stage):
    """The changes of a padded step. A row moves its window by one key, which is two changes.

    Where a window jumps, as that of a row that is computed again, its changes are written one by
    one ahead of the stages. Padding leaves a tag of nobody as it is.
    """

    name = "windows"
    ahead = True
    parameters = (
        Parameter(np.int64),  # tag row
        Parameter(np.int64),  # position
        Parameter(np.uint8, tuple(range(CLASSES)), (CLASSES,)),  # what each class becomes
    )

    def __init__(self, handler: RecentHandler, tags: torch.Tensor, most: int) -> None:
        """
        Args:
            tags: uint8 [tag rows, layers, positions].
            most: rows of the largest step.
        """
        self.sizes = doubling(2 * most)
        self._handler = handler
        self._tags = tags

    def asked(self, roster: Roster) -> list[tuple[int, Sequence, RecentRule]] | None:
        """Rows with windows, see :class:`Stage`."""
        found = [
            (row, sequence, rule)
            for row, sequence in enumerate(roster.sequences)
            if sequence.plan is not None and (rule := sequence.plan.rule(RecentRule)) is not None
        ]
        return found or None

    def write(
        self,
        parameters: list[NDArray[Any]],
        asked: list[tuple[int, Sequence, RecentRule]],
        rows: StepRows,
    ) -> int:
        """See :class:`Stage`."""
        changes = self._handler.changes(
            (sequence, rule, int(rows.starts[row])) for row, sequence, rule in asked
        )
        if len(changes) > 2 * len(asked):
            self._handler.write(changes)
            return 0
        for array, values in zip(parameters, arranged(changes), strict=True):
            array[: len(changes)] = values
        return len(changes)

    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        """See :class:`Stage`."""
        change_tags(self._tags, *parameters)


def window(position: int, prompt_length: int, rule: RecentRule) -> Window:
    """The keys that are recent to the query row at a position; none to a row of the prompt."""
    if position < prompt_length:
        return NOTHING
    start = max(rule.start, position - rule.width)
    return start, max(position + rule.with_self, start)


def arranged(changes: Batch[Change]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Tag rows and positions, int64 [n], and what each class becomes, uint8 [n, CLASSES]."""
    remaps = np.tile(np.arange(CLASSES, dtype=np.uint8), (len(changes), 1))
    for index, change in enumerate(changes):
        for old, new in change.remap:
            remaps[index, old] = new
    rows = np.array([change.tag_row for change in changes], dtype=np.int64)
    return rows, np.array([change.position for change in changes], dtype=np.int64), remaps


def change_tags(
    tags: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, remaps: torch.Tensor
) -> None:
    """Replace tags in every layer; a key that is never attended stays so.

    Args:
        tags: uint8 [tag rows, layers, positions].
        rows: int64 [n]; ``positions`` likewise.
        remaps: uint8 [n, CLASSES], what each class becomes.
    """
    there = tags[rows, :, positions]  # [n, layers]
    changed = remaps.gather(1, there.clamp(max=CLASSES - 1).long())
    tags[rows, :, positions] = torch.where(there < CLASSES, changed, there)


def _without(window: Window, other: Window) -> list[int]:
    """Positions of one window that are not in the other."""
    before = range(window[0], min(window[1], other[0]))
    behind = range(max(window[0], other[1]), window[1])
    return [*before, *behind]
