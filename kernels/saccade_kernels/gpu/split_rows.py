"""Question rows: which query rows of a prefill are split over their keys, and into what.

A few edited rows behind a long prompt would be a few programs that each walk all keys. Cut over the
keys they are many: an *item* is one block of rows against one split of its pages.

    positions of a prompt   0 ............................................ a .... a + BLOCK_M
    pages the block sees    | split 0 | split 1 | split 2 |     ...      | split n - 1 |
                            fixed boundaries, share of pages each         diagonal page in the last

A row gets the same bits however its prompt is cut into chunks of more than one row (one alone is
computed as a decode) and whatever else a step holds: a block lies between two multiples of
``block_m`` positions, and where its splits lie is a function of that place, of its run's span in
the whole prompt, of the layer's window and of the configuration.

Partial results take memory, [split of a row, head, class] vectors of float32. Rows are worked off
in *waves* of at most :data:`WAVE_BYTES`, one block at least; longer spans have fewer splits, so
that one prompt of any length and span fills one or two waves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from saccade_kernels.batch import PAGE, AttentionBatch, Run
from saccade_kernels.controls import Edit
from saccade_kernels.gpu.blocks import FIELDS as BLOCK_FIELDS
from saccade_kernels.gpu.blocks import SPLIT_EDITS, Block, unsplit_rows
from saccade_kernels.gpu.tuning import SplitConfig

BEGUN = BLOCK_FIELDS
ITEM_FIELDS = BLOCK_FIELDS + 5
"""Behind a block's fields: where its partials begin, its splits, which of them this is, and the
pages [first, last) of the sequence that this one has."""

ROW_FIELDS = 6
"""Of a query row: its place in the output, sequence, control row, 1 if keys are hidden from it,
where its partials begin, and its splits. Partials are counted in splits of one row, each of which
has room for all heads and classes."""

WAVE_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Wave:
    """What one launch over items and one merge of its rows do. Tables are int32, on the device."""

    items: torch.Tensor  # [items, ITEM_FIELDS]
    rows: torch.Tensor  # [rows, ROW_FIELDS]
    splits: int  # of all its rows together: how many partials it needs


@dataclass(frozen=True, slots=True)
class SplitBlock:
    """A block of rows, and how its pages are split."""

    block: Block
    low: int  # first page
    high: int  # behind the last one, on whose diagonal the rows are
    share: int  # pages of a split

    @property
    def splits(self) -> int:
        """How many there are."""
        return -(-(self.high - self.low) // self.share)


def split_layer(batch: AttentionBatch, layer: int, config: SplitConfig) -> bool:
    """True if ``layer`` edits the attention of some row that is split."""
    name = ("split edits", config)
    if name not in batch.derived:
        runs = [run for run, _, _ in _split_runs(batch, config)]
        every = zip(*(run.edits for run in runs), strict=True)
        batch.derived[name] = [any(edit & SPLIT_EDITS for edit in edits) for edits in every]
    found: list[bool] = batch.derived[name]
    return bool(found) and found[layer]


def waves(
    batch: AttentionBatch, window: int, row_bytes: int, config: SplitConfig, device: torch.device
) -> tuple[Wave, ...]:
    """The rows of a step that are split, made once for all layers of one window.

    Args:
        window: keys that a row sees up to its own, 0: all.
        row_bytes: of the partials of one split of one row.
    """
    name = ("split waves", window, row_bytes, config)
    if name not in batch.derived:
        made = tuple(split_blocks(batch, window, config))
        batch.derived[name] = tuple(
            _upload(some, device) for some in _in_waves(made, max(1, WAVE_BYTES // row_bytes))
        )
    found: tuple[Wave, ...] = batch.derived[name]
    return found


def split_blocks(batch: AttentionBatch, window: int, config: SplitConfig) -> Iterator[SplitBlock]:
    """Blocks of at most ``config.block_m`` rows, which divides :data:`PAGE`."""
    for run, (sequence, row, position, hides), rows in _split_runs(batch, config):
        end = position + rows
        # A longer span has programs enough with fewer splits.
        most = max(2, config.max_splits // -(-run.span // PAGE))
        while position < end:
            aligned = position // config.block_m * config.block_m
            count = min(aligned + config.block_m, end) - position
            low = max(aligned - window + 1, 0) // PAGE if window else 0
            high = aligned // PAGE + 1
            share = max(config.split // PAGE, -(-(high - low) // most))
            block = (sequence, row, count, position, run.control_row, hides)
            yield SplitBlock(block, low, high, share)
            row, position = row + count, position + count


def _split_runs(
    batch: AttentionBatch, config: SplitConfig
) -> Iterator[tuple[Run, tuple[int, int, int, int], int]]:
    """Runs with (sequence, first row, its position, hides) of the rows that are split, and how many
    there are.
    """
    row = 0
    for sequence, prefill in enumerate(batch.prefills, batch.num_decodes):
        position = prefill.context - prefill.queries if prefill.context else -prefill.queries
        for run in prefill.runs:
            before = unsplit_rows(run, position, config)
            if before < run.rows:
                hides = int(any(edit & Edit.HIDE for edit in run.edits))
                yield run, (sequence, row + before, position + before, hides), run.rows - before
            row, position = row + run.rows, position + run.rows


def _in_waves(blocks: tuple[SplitBlock, ...], most: int) -> Iterator[list[SplitBlock]]:
    """Blocks in their order, of at most ``most`` splits of rows together, or one block."""
    wave: list[SplitBlock] = []
    taken = 0
    for one in blocks:
        needed = one.block[2] * one.splits
        if wave and taken + needed > most:
            yield wave
            wave, taken = [], 0
        wave.append(one)
        taken += needed
    if wave:
        yield wave


def _upload(blocks: list[SplitBlock], device: torch.device) -> Wave:
    items, rows, begun = [], [], 0
    for one in blocks:
        sequence, first_row, count, _, control_row, hides = one.block
        for split in range(one.splits):
            first = one.low + split * one.share
            last = min(first + one.share, one.high)
            items.append((*one.block, begun, one.splits, split, first, last))
        for row in range(count):
            rows.append((first_row + row, sequence, control_row, hides, begun, one.splits))
            begun += one.splits
    packed = [np.array(items, np.int32), np.array(rows, np.int32)]
    both = torch.from_numpy(np.concatenate([table.ravel() for table in packed]))
    if device.type == "cuda":
        both = both.pin_memory()
    both = both.to(device, non_blocking=True)
    size = packed[0].size
    return Wave(both[:size].view(-1, ITEM_FIELDS), both[size:].view(-1, ROW_FIELDS), begun)
