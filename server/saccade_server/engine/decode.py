"""Steps that only decode, at a few fixed batch sizes, with inputs that stay where they are.

Each size is computed by a function of device memory alone: token ids, positions, slots, lengths,
pages and table rows are read from one block, the tables of plans from where they always are, and
logits are written to one buffer. Nothing in it depends on a number that the host holds, so on a GPU
it is captured once and replayed (graphs.py); elsewhere it is called, which is how tests compare it
with ordinary steps.

Sizes share the block, each with a layout of its own, so what one size wrote means nothing to
another. Nothing is therefore ever computed from what the block happens to hold: a size is written
before it runs, by a step (:meth:`PaddedDecoder.run`) or with padding alone
(:meth:`PaddedDecoder.idle`), and capturing takes the latter.

Padding has a context of 0, follows row 0 of both tables, and writes its keys to page 0.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_kernels.batch import PAGE, AttentionBatch
from saccade_kernels.controls import CLASSES, Edit
from saccade_server.engine.batch import PromptPositions, control_rows, edits_of, fill_in
from saccade_server.engine.scheduler import Chunk
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.tables import DeviceTables
from saccade_server.engine.transfer import Layout, host_block
from saccade_server.models.attention import ForwardStep
from saccade_server.models.family import ServedModel
from saccade_server.models.streams import Reach, StreamStep

PLAIN = 1
"""The variant without edits: one class of keys."""

EVERY_EDIT = Edit.SCORE | Edit.MASS | Edit.HEAD | Edit.HIDE

Variant = tuple[int, int, Reach]
"""Padded batch size; number of key classes, :data:`PLAIN` or one that edits; and which sites are
edited, if any with the largest number of classes only."""

Play = Callable[[int, int, Reach], None]
"""Computes a variant from what the block holds, which must have been written for its size."""


def padded_sizes(most: int) -> tuple[int, ...]:
    """Batch sizes that steps are padded to, ascending; the steps are vLLM's."""
    steps = (1, 2, 4, *range(8, 256, 8), *range(256, most, 16))
    return (*(size for size in steps if size < most), most)


def class_counts(group: int) -> tuple[int, ...]:
    """Numbers of key classes that edited steps are rounded up to.

    A decode kernel's tile has a row for each pair of a head of the group and a class, and at least
    16 of them: with few heads the full number of classes costs what two do.
    """
    return (CLASSES,) if group * CLASSES <= 16 else (2, 4, CLASSES)


@dataclass(frozen=True)
class DecodeInputs:
    """The fields of the block, as arrays on the host or as tensors on the device; B is padded."""

    tokens: Any  # int64 [B]
    sources: Any  # int64 [B], see Step
    positions: Any  # int64 [axes, B]
    slots: Any  # int64 [B]
    context_lens: Any  # int32 [B]
    control_rows: Any  # int32 [B]
    tag_rows: Any  # int32 [B]
    page_table: Any  # int32 [B, pages of the longest sequence]

    @staticmethod
    def layout(size: int, axes: int, pages: int) -> Layout:
        """Where they lie in the block for one padded size."""
        wide = [((size,), np.int64), ((size,), np.int64), ((axes, size), np.int64)]
        narrow = [((size,), np.int32)] * 3 + [((size, pages), np.int32)]
        return Layout([*wide, ((size,), np.int64), *narrow])


class PaddedDecoder:
    """Buffers, and the step function on them."""

    def __init__(
        self,
        model: ServedModel,
        caches: tuple[Batch[torch.Tensor], Batch[torch.Tensor]],
        tables: DeviceTables,
        drawn: torch.Tensor,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        """``drawn``: the tokens of the step before, int64, by the rows that ``sources`` names."""
        self._model = model
        self._keys, self._values = caches
        self._tables = tables
        self._drawn = drawn
        self._max_model_len = max_model_len
        self.sizes = padded_sizes(max_num_seqs)
        self._classes = class_counts(model.heads // model.kv_heads)
        self._streams = {
            reach: StreamStep(tables.streams, reach.sites(model.layers)) if reach else None
            for reach in Reach
        }
        pages = -(-max_model_len // PAGE)
        self._layouts = {size: DecodeInputs.layout(size, model.axes, pages) for size in self.sizes}
        device = model.device
        room = self._layouts[max_num_seqs].size
        self._block = torch.empty(room, dtype=torch.uint8, device=device)
        self._written = 0  # the size that the block is laid out for now
        self._starts = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        wide = torch.promote_types(model.dtype, torch.float32)
        shape = (max_num_seqs, model.vocab_size)
        self._logits = torch.zeros(shape, dtype=wide, device=device)
        self.play: Play = self.compute

    @property
    def variants(self) -> list[Variant]:
        """All that a step may need, the largest first: later captures reuse the memory of it."""
        counts = sorted((PLAIN, *self._classes), reverse=True)
        forms = [(counts[0], Reach.EVERYWHERE), (counts[0], Reach.RESIDUALS)]
        forms += [(count, Reach.NOWHERE) for count in counts]
        return [(size, *form) for size in reversed(self.sizes) for form in forms]

    def run(
        self,
        chunks: Batch[Chunk],
        positions: Batch[PromptPositions],
        drawn: Mapping[Sequence, int],
    ) -> torch.Tensor:
        """Compute single tokens that all sample; arguments as for :func:`batch.pack`.

        Returns:
            Logits [chunks, vocabulary], good until the next call.
        """
        size = self.sizes[bisect_left(self.sizes, len(chunks))]
        self._write(size, chunks, positions, drawn)
        self.play(size, *self._form(chunks))
        return self._logits[: len(chunks)]

    def idle(self, variant: Variant) -> Callable[[], None]:
        """What computes a variant, with its inputs written: padding in every place.

        Whoever runs a variant outside of a step takes it from here.
        """
        self._write(variant[0], (), (), {})
        return partial(self.compute, *variant)

    def compute(self, size: int, classes: int, reach: Reach) -> None:
        """Logits of what was written for this size; all that a graph captures."""
        assert size == self._written, "the block holds the inputs of another size"
        inputs = DecodeInputs(*self._layouts[size].tensors(self._block))
        tokens = fill_in(inputs.tokens, inputs.sources, self._drawn)
        step = ForwardStep(
            self._batch(inputs, size, classes),
            self._keys,
            self._values,
            streams=self._streams[reach],
        )
        hidden = self._model.forward(self._model.embed(tokens), inputs.positions, step)
        self._logits[:size].copy_(self._model.logits(hidden))

    def _batch(self, inputs: DecodeInputs, size: int, classes: int) -> AttentionBatch:
        edited = classes != PLAIN
        return AttentionBatch(
            slots=inputs.slots,
            query_starts=self._starts[: size + 1],
            context_lens=inputs.context_lens,
            page_table=inputs.page_table,
            num_decodes=size,
            max_context=self._max_model_len,
            control_rows=inputs.control_rows,
            tag_rows=inputs.tag_rows,
            edits=(EVERY_EDIT,) * self._model.layers if edited else (),
            classes=classes,
            controls=self._tables.controls if edited else None,
            tags=self._tables.tags if edited else None,
        )

    def _form(self, chunks: Batch[Chunk]) -> tuple[int, Reach]:
        """The fewest classes that are enough for the step, and the sites that it edits."""
        rows = [control_rows(chunk) for chunk in chunks]
        streams = self._tables.stream_step({row for some in rows for row in some})
        if streams is not None:
            return self._classes[-1], Reach.of(streams)
        if not edits_of(self._tables, chunks, rows):
            return PLAIN, Reach.NOWHERE
        needed = self._tables.classes(chunk.sequence.tag_row for chunk in chunks)
        return self._classes[bisect_left(self._classes, needed)], Reach.NOWHERE

    def _write(
        self,
        size: int,
        chunks: Batch[Chunk],
        positions: Batch[PromptPositions],
        drawn: Mapping[Sequence, int],
    ) -> None:
        """Fill the block, in one copy. The block's last reader runs before it, on one stream."""
        layout, self._written = self._layouts[size], size
        staging = host_block(layout.size, self._model.device)
        bytes_ = staging.numpy()
        bytes_.fill(0)
        fill(DecodeInputs(*layout.arrays(bytes_)), chunks, positions, drawn)
        self._block[: layout.size].copy_(staging, non_blocking=True)


def fill(
    inputs: DecodeInputs,
    chunks: Batch[Chunk],
    positions: Batch[PromptPositions],
    drawn: Mapping[Sequence, int],
) -> None:
    """Write a step into zeroed arrays; what lies behind its chunks, of which there may be none,
    stays padding.
    """
    count = len(chunks)
    sequences = [chunk.sequence for chunk in chunks]
    starts = [chunk.start for chunk in chunks]
    pairs = list(zip(sequences, starts, strict=True))
    known = [at < len(sequence.tokens) for sequence, at in pairs]
    inputs.tokens[:count] = [
        sequence.tokens[at] if here else 0
        for (sequence, at), here in zip(pairs, known, strict=True)
    ]
    inputs.sources.fill(-1)
    inputs.sources[:count] = [
        -1 if here else drawn[sequence] for sequence, here in zip(sequences, known, strict=True)
    ]
    places = [p.at(at) for p, at in zip(positions, starts, strict=True)]
    inputs.positions[:, :count] = np.array(places, dtype=np.int64).T
    inputs.slots[:count] = [s.pages[at // PAGE] * PAGE + at % PAGE for s, at in pairs]
    inputs.context_lens[:count] = [at + 1 for at in starts]
    inputs.control_rows[:count] = [s.control_row(at) for s, at in pairs]
    inputs.tag_rows[:count] = [s.tag_row for s in sequences]
    _fill_pages(inputs.page_table, pairs)


def _fill_pages(table: NDArray[np.int32], pairs: Batch[tuple[Sequence, int]]) -> None:
    for row, (sequence, at) in enumerate(pairs):
        used = at // PAGE + 1
        table[row, :used] = sequence.pages[:used]
