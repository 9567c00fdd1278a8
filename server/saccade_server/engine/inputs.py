"""The inputs of a padded decode: the fields of its block, and how a step's rows fill them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from saccade_kernels.batch import PAGE
from saccade_server.engine.batch import Ints
from saccade_server.engine.drawn import DrawnRows
from saccade_server.engine.seats import Roster, Seats
from saccade_server.engine.transfer import Layout


@dataclass(frozen=True)
class DecodeInputs:
    """The fields of the block, as arrays on the host or as tensors on the device; B is padded.

    ``sources`` says where each token lies in the memory whose first words are the tokens that the
    step before has drawn: among those, or in ``tokens``.
    """

    tokens: Any  # int64 [B]: those that the host knows
    sources: Any  # int64 [B], in words of 8 bytes
    positions: Any  # int64 [axes, B]
    slots: Any  # int64 [B]
    context_lens: Any  # int32 [B]
    control_rows: Any  # int32 [B]
    tag_rows: Any  # int32 [B]
    searched: Any  # int32 [n]: rows whose classes of single heads are to be found, then -1
    page_table: Any  # int32 [B, pages of the longest sequence]

    @classmethod
    def empty(cls, size: int, axes: int, pages: int, most: int = 0) -> DecodeInputs:
        """Arrays of their own on the host; not initialised.

        Args:
            most: rows that may be searched.
        """
        tokens, sources, slots = np.empty((3, size), np.int64)
        lengths, controls, tags = np.empty((3, size), np.int32)
        positions, table = np.empty((axes, size), np.int64), np.empty((size, pages), np.int32)
        searched = np.empty(min(size, most), np.int32)
        return cls(tokens, sources, positions, slots, lengths, controls, tags, searched, table)

    @staticmethod
    def layout(size: int, axes: int, pages: int, most: int = 0) -> Layout:
        """Where they lie in the block for one padded size; ``tokens`` lies first."""
        wide = [((size,), np.int64), ((size,), np.int64), ((axes, size), np.int64)]
        narrow = [((size,), np.int32)] * 3
        searched, table = ((min(size, most),), np.int32), ((size, pages), np.int32)
        return Layout([*wide, ((size,), np.int64), *narrow, searched, table])


def pad(inputs: DecodeInputs, count: int, tokens: int) -> None:
    """Write padding behind so many rows, and say of all rows that the host knows their tokens.

    Args:
        tokens: where the field of this name lies, in words.
    """
    inputs.sources[:] = np.arange(tokens, tokens + len(inputs.sources))
    inputs.positions[:, count:] = 0
    names = ("tokens", "slots", "context_lens", "control_rows", "tag_rows", "page_table")
    for name in names:
        getattr(inputs, name)[count:] = 0
    inputs.searched[:] = -1


def fill(
    inputs: DecodeInputs, seats: Seats, roster: Roster, starts: Ints, drawn: DrawnRows
) -> None:
    """Write the rows of a step behind which padding was written.

    Args:
        starts: position of each row.
        drawn: rows of the sequences whose last tokens the step before has drawn.
    """
    count = len(starts)
    page, place = np.divmod(starts, PAGE)
    table = inputs.page_table[:count]
    table[:] = seats.pages(roster, page + 1)
    inputs.slots[:count] = table[np.arange(count), page].astype(np.int64) * PAGE + place
    inputs.context_lens[:count] = starts + 1
    inputs.tag_rows[:count] = roster.tag_rows
    inputs.control_rows[:count] = roster.control_rows
    if len(roster.searched):
        inputs.searched[: len(roster.searched)] = roster.searched
    inputs.positions[:, :count] = starts + roster.delta
    for row in roster.prompt_rows(starts).tolist():
        sequence, at = roster.sequences[row], int(starts[row])
        inputs.control_rows[row] = sequence.control_row(at)
        inputs.positions[:, row] = seats.positions(sequence).at(at)
    _fill_tokens(inputs, roster, starts, drawn)


def _fill_tokens(inputs: DecodeInputs, roster: Roster, starts: Ints, drawn: DrawnRows) -> None:
    sequences = roster.sequences
    known = np.array([len(sequence.tokens) for sequence in sequences], np.int64)
    unknown = np.flatnonzero(starts >= known)
    if not len(unknown):
        pairs = zip(sequences, starts.tolist(), strict=True)
        inputs.tokens[: len(starts)] = [sequence.tokens[at] for sequence, at in pairs]
        return
    inputs.tokens[: len(starts)] = 0
    for row in np.flatnonzero(starts < known).tolist():
        inputs.tokens[row] = sequences[row].tokens[starts[row]]
    inputs.sources[unknown] = drawn.of(sequences, unknown)
