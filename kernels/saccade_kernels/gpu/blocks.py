"""The prefill's work list: query rows cut into blocks that each follow one control row.

A block never crosses from one run of a prefill to the next, so what its rows do to a head are
scalars of the block. The list is built on the host once a step and serves all its layers.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch

from saccade_kernels.batch import AttentionBatch, LayerEdits, Prefill, Run
from saccade_kernels.controls import Edit
from saccade_kernels.gpu.tuning import SplitConfig

FIELDS = 6
"""Sequence, its first row among the prefills' rows, rows, position of the first one in the
sequence, control row, and 1 if keys tagged NEVER_ATTEND are hidden from it."""

Block = tuple[int, int, int, int, int, int]


def work_list(
    batch: AttentionBatch,
    block_m: int,
    device: torch.device,
    edited: bool = False,
    aligned: bool = False,
    split: SplitConfig | None = None,
) -> torch.Tensor:
    """Blocks of at most ``block_m`` rows, the slowest first: int32 [blocks, FIELDS].

    Args:
        edited: only those of runs that edit something in some layer.
        aligned: none with rows on both sides of a multiple of ``block_m`` positions.
        split: without the rows that it splits over their keys.
    """
    name = ("prefill blocks", block_m, edited, aligned, split)
    if name not in batch.derived:
        blocks = cut(batch.prefills, batch.num_decodes, block_m, edited, aligned, split)
        batch.derived[name] = _upload(blocks, device)
    items = batch.derived[name]
    assert isinstance(items, torch.Tensor)
    return items


def layer_edits(batch: AttentionBatch, layer: int) -> int:
    """What some query row of some prefill does in ``layer``: :class:`Edit` flags.

    As in a block's entry, what is hidden from a run in some layer is hidden in all.
    """
    name = "prefill edits"
    if name not in batch.derived:
        every = [run.edits for prefill in batch.prefills for run in prefill.runs if run.edits]
        hides = int(any(_hides(edits) for edits in every)) * int(Edit.HIDE)
        batch.derived[name] = [
            reduce(int.__or__, map(int, edits), hides) for edits in zip(*every, strict=True)
        ]
    edits = batch.derived[name]
    return int(edits[layer]) if edits else 0


def _hides(edits: LayerEdits) -> bool:
    return any(edit & Edit.HIDE for edit in edits)


SPLIT_EDITS = Edit.SCORE | Edit.MASS | Edit.HIDE
"""Edits of which one at least makes a row's attention another; gains and shifts come behind it."""


def unsplit_rows(run: Run, position: int, config: SplitConfig) -> int:
    """How many of a run's rows, from its first one's ``position`` on, come before those that are
    split over their keys (split_rows.py).
    """
    edited = any(edit & SPLIT_EDITS for edit in run.edits)
    if not edited or not 0 < run.span <= config.most_rows:
        return run.rows
    return min(run.rows, max(0, config.least_keys - position))


def cut(
    prefills: tuple[Prefill, ...],
    first_sequence: int,
    block_m: int,
    edited: bool = False,
    aligned: bool = False,
    split: SplitConfig | None = None,
) -> list[Block]:
    """The blocks themselves; a padded sequence's have negative positions and see no key."""
    found: list[tuple[int, Block]] = []
    row = 0
    for sequence, prefill in enumerate(prefills, first_sequence):
        position = prefill.context - prefill.queries if prefill.context else -prefill.queries
        for run in prefill.runs:
            hides = int(_hides(run.edits))
            rows = run.rows if split is None else unsplit_rows(run, position, split)
            rows = rows if any(run.edits) or not edited else 0
            # Of an aligned block's tile the first rows may be somebody else's.
            begin = -(position % block_m) if aligned else 0
            for tile in range(begin if rows else 0, rows, block_m):
                start, end = max(tile, 0), min(tile + block_m, rows)
                block = (sequence, row + start, end - start, position + start)
                found.append((position + end, (*block, run.control_row, hides)))
            row += run.rows
            position += run.rows
    # Equal costs keep their order, so neighbours in the grid read the same keys.
    return [block for _, block in sorted(found, key=lambda each: -each[0])]


def _upload(blocks: list[Block], device: torch.device) -> torch.Tensor:
    items = torch.from_numpy(np.array(blocks, dtype=np.int32).reshape(-1, FIELDS))
    if device.type == "cuda":
        items = items.pin_memory()
    return items.to(device, non_blocking=True)
