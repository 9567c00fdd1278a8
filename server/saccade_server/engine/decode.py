"""Steps that only decode, at a few fixed batch sizes, with inputs that stay where they are.

Each size is computed by a function of device memory alone: token ids, positions, slots, lengths,
pages and table rows are read from one block, the tables of plans from where they always are, and
logits and tokens are written to fixed places. Nothing in it depends on a number that the host
holds, so on a GPU it is captured once and replayed (graphs.py); elsewhere it is called, which is
how tests compare it with ordinary steps. What only some rows ask for, draws among it, is captured
too, in graphs of its own (stages.py).

Sizes share the block, each with a layout of its own: bytes that one size wrote mean nothing to
another. So inputs are written right before each run of a size:

    a step       write its rows, then padding; run the size           (:meth:`PaddedDecoder.run`)
    a capture    write padding alone; run the size, then record it    (:meth:`PaddedDecoder.idle`)

Padding has a context of 0, follows row 0 of both tables, and writes its keys to page 0.

A step's arrays are put together from those of its sequences (seats.py). Single rows are looked at
only where a row is the last of a prompt, or the host knows its token.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Batch
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_kernels.batch import AttentionBatch
from saccade_kernels.controls import CLASSES, Edit
from saccade_server.engine.batch import Ints
from saccade_server.engine.drawn import DrawnRows
from saccade_server.engine.draws import draw_stages
from saccade_server.engine.inputs import DecodeInputs, fill, pad
from saccade_server.engine.mask_stages import mask_stages
from saccade_server.engine.masks import FREE, Masks
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.seats import Roster, Seats
from saccade_server.engine.stages import Stage, Stages, StageVariant, StepRows
from saccade_server.engine.tables import DeviceTables
from saccade_server.engine.transfer import host_block
from saccade_server.engine.wants import Search
from saccade_server.models.attention import AttentionMeasure, ForwardStep
from saccade_server.models.family import ServedModel
from saccade_server.models.probes import ResidualProbe
from saccade_server.models.residual import Reach, ResidualStep
from saccade_server.models.tape import Activation, FixedTape

PLAIN = 1
"""The variant without edits: one class of keys."""

EVERY_EDIT = Edit.SCORE | Edit.MASS | Edit.HEAD | Edit.HIDE


class StepVariant(NamedTuple):
    """One form of the step. Sites are edited, and things looked for, by steps that edit only."""

    size: int  # padded batch size
    classes: int  # number of key classes, :data:`PLAIN` or CLASSES, which cost no more than two
    reach: Reach = Reach.NOWHERE  # which sites are edited
    search: Search = Search.NOTHING


Variant = StepVariant | StageVariant

Play = Callable[[Variant], None]
"""Computes a variant from what the block holds, which must have been written for it."""

MakeLook = Callable[
    [Search, DecodeInputs], tuple[tuple[ResidualProbe, ...], tuple[AttentionMeasure, ...]]
]
"""What looks for this inside the layers of a padded step with these inputs, on the device."""

MakeStages = Callable[[StepOutputs], Iterable[Stage]]
"""Stages around the steps that leave these outputs; see :class:`PaddedDecoder`."""


def padded_sizes(most: int) -> tuple[int, ...]:
    """Batch sizes that steps are padded to, ascending; the steps are vLLM's."""
    steps = (1, 2, 4, *range(8, 256, 8), *range(256, most, 16))
    return (*(size for size in steps if size < most), most)


class PaddedDecoder:
    """Buffers, and the step function on them."""

    def __init__(
        self,
        model: ServedModel,
        caches: tuple[Batch[torch.Tensor], Batch[torch.Tensor]],
        tables: DeviceTables,
        seats: Seats,
        max_num_seqs: int,
        max_model_len: int,
        make_stages: MakeStages = lambda _: (),
        make_look: MakeLook = lambda *_: ((), ()),
        search: Search = Search.NOTHING,
    ) -> None:
        """
        Args:
            make_stages: those that come before the draws, in their order.
            make_look: of variants that look for something.
            search: all that there is to look for.
        """
        self._make_look, self._search = make_look, search
        self._model = model
        self._keys, self._values = caches
        self._tables = tables
        self._max_model_len = max_model_len
        self.sizes = padded_sizes(max_num_seqs)
        self._residuals = {
            reach: ResidualStep(tables.residuals, reach.sites(model.layers)) if reach else None
            for reach in Reach
        }
        self._seats = seats
        self._layouts = {
            size: DecodeInputs.layout(size, model.axes, seats.width, tables.per_head_rows - 1)
            for size in self.sizes
        }
        self._written = 0  # the size that the block is laid out for now
        self._starts = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=model.device)
        self.outputs = self._make_outputs(max_num_seqs)
        draws = draw_stages(self.outputs, seats, self.sizes)
        self._masks, self._masked = mask_stages(self.outputs)
        rules = make_stages(self.outputs)
        self.stages = Stages([self._masks, *rules, self._masked, *draws])
        self._allocate(self._layouts[max_num_seqs].size)
        self.play: Play = self.compute
        self.played: tuple[Variant, ...] = ()  # for the last step
        self._behind: list[StageVariant] = []  # what of it is still to be played

    def _make_outputs(self, most: int) -> StepOutputs:
        model = self._model
        wide = torch.promote_types(model.dtype, torch.float32)
        shape = (model.layers, most + 1, model.hidden_size)  # the last row is padding's
        residuals = torch.zeros(shape, dtype=model.dtype, device=model.device)
        return StepOutputs(
            torch.zeros((most + 1, model.vocab_size), dtype=wide, device=model.device),
            FixedTape(model.decoder.spec, residuals),
        )

    def _allocate(self, block: int) -> None:
        """One piece of memory: news of a step, parameters of stages, the block of a step."""
        news = self.outputs.size
        self._block_start = news + self.stages.size
        room = self._block_start + block
        memory = torch.empty(room, dtype=torch.uint8, device=self._model.device)
        self.outputs.bind(memory[:news].zero_())
        self.stages.bind(memory[news : self._block_start])
        self.drawn: torch.Tensor = self.outputs.news.tokens
        self._uploaded, self._block = memory[news:], memory[self._block_start :]
        self._words = memory[: room // 8 * 8].view(torch.int64)

    @property
    def variants(self) -> list[Variant]:
        """All that a step may need, the largest first: later captures reuse the memory of it."""
        nothing, reaches = Search.NOTHING, (Reach.EVERYWHERE, Reach.RESIDUALS, Reach.NOWHERE)
        forms = [(CLASSES, reach, nothing) for reach in reaches]
        forms += [(PLAIN, Reach.NOWHERE, nothing)]
        searches = [(CLASSES, reach, one) for one in self._search for reach in reaches[::2]]
        if len(self._search) > 1:
            searches = [(CLASSES, Reach.EVERYWHERE, self._search), *searches]
        steps = [
            StepVariant(size, *form)
            for size in reversed(self.sizes)
            for form in ([*searches, *forms] if size in self.search_sizes else forms)
        ]
        return [*self.stages.variants, *steps]

    @property
    def search_sizes(self) -> tuple[int, ...]:
        """Batch sizes that steps are padded to in which something is looked for: fewer, as few do.

        Powers of two, and the largest.
        """
        return tuple(s for s in self.sizes if s & (s - 1) == 0 or s == self.sizes[-1])

    @property
    def largest(self) -> list[Variant]:
        """The variants of which one needs as much memory as any does."""
        form = (self.sizes[-1], CLASSES, Reach.EVERYWHERE)
        return [*self.stages.largest, StepVariant(*form, self._search)]

    def run(self, roster: Roster, starts: Ints, drawn: DrawnRows, behind: bool) -> torch.Tensor:
        """Compute a row of each of the roster's sequences, up to the stages behind the step.

        Args:
            starts: position of each row, int64.
            drawn: rows of the sequences whose last tokens the step before has drawn.
            behind: stages run behind the step, as soon as :meth:`go_behind` is called, and draw
                the tokens of rows that sample; otherwise only those of greedy rows are worth
                anything.

        Returns:
            Logits [rows, vocabulary], good until the next call, and before stages change them.
        """
        sizes = self.search_sizes if roster.wanted.search else self.sizes
        size = sizes[bisect_left(sizes, len(starts))]
        first = self.stages.first(roster, behind)
        block = self._host(size, first)
        inputs = self._pad(block, size, len(starts))
        fill(inputs, self._seats, roster, starts, drawn)
        stages: list[StageVariant] = []
        if self.stages.wants(roster, behind):
            rows = StepRows(roster, starts, inputs)
            stages = self.stages.write(block.numpy(), rows, behind, first)
        self._send(block, size)
        step = StepVariant(size, *self._form(roster, inputs.control_rows[: len(starts)]))
        order = self.stages.around(step, stages) if stages else [step]
        at = order.index(step) + 1
        self.played, self._behind = (*order[:at],), order[at:]  # type: ignore[assignment]
        for variant in self.played:
            self.play(variant)
        return self.outputs.logits[: len(starts)]

    def go_behind(self, roster: Roster, masks: Masks = FREE) -> None:
        """Run what stages do behind the step that ran last, of this roster.

        Args:
            masks: of those of its rows that grammars hold.
        """
        behind, self._behind = self._behind, []
        if not behind:
            return
        if masks:
            self._masks.send(masks, masks.among(roster.sequences)[0])
        elif len(roster.held):
            own = (self._masks.name, self._masked.name)
            behind = [variant for variant in behind if variant.stage not in own]
        try:
            for variant in behind:
                self.play(variant)
        except Exception:
            self.outputs.allow_all()
            raise
        self.played = (*self.played, *behind)

    def idle(self, variant: Variant) -> Callable[[], None]:
        """Write padding as a variant's inputs, and return the function that runs the variant on it.

        The only way to run a variant outside of a step.
        """
        if isinstance(variant, StageVariant):
            block = self._host(self.sizes[0], 0)
            self.stages.pad(block.numpy(), variant)
            end = self.stages.size
            self._uploaded[:end].copy_(block[:end], non_blocking=True)
        else:
            if variant.search & Search.PER_HEAD_CLASSES:
                self._tables.make_per_head()
            block = self._host(variant.size, self.stages.size)
            self._pad(block, variant.size, 0)
            self._send(block, variant.size)
        return partial(self.compute, variant)

    def compute(self, variant: Variant) -> None:
        """Run a variant on the inputs in the block: the function that a graph captures."""
        if isinstance(variant, StageVariant):
            self.stages.compute(variant)
        else:
            self._step(variant)

    def _step(self, variant: StepVariant) -> None:
        """Logits of the inputs in the block, and the likeliest token of each row."""
        size = variant.size
        assert size == self._written, "the block holds the inputs of another size"
        inputs = DecodeInputs(*self._layouts[size].tensors(self._block))
        tokens = self._words.index_select(0, inputs.sources)
        tape = self.outputs.tape.of(size)
        probes, measures = self._make_look(variant.search, inputs) if variant.search else ((), ())
        step = ForwardStep(
            self._batch(inputs, variant),
            self._keys,
            self._values,
            probes=probes,
            measures=measures,
            residuals=self._residuals[variant.reach],
            tape=tape,
        )
        embeddings = self._model.embed(tokens, tape.room(Activation.RESIDUAL, 0))
        hidden = self._model.forward(embeddings, inputs.positions, step)
        self.outputs.logits[:size].copy_(self._model.logits(hidden, self._tables.invariant))
        self.outputs.greedy(size)

    def _batch(self, inputs: DecodeInputs, variant: StepVariant) -> AttentionBatch:
        size, classes, edited = variant.size, variant.classes, variant.classes != PLAIN
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
            per_head_classes=bool(variant.search & Search.PER_HEAD_CLASSES),
            controls=self._tables.controls if edited else None,
            tags=self._tables.tags if edited else None,
            invariant=self._tables.invariant,
        )

    def _form(self, roster: Roster, control_rows: NDArray[np.int32]) -> tuple[int, Reach, Search]:
        """Key classes of the step, sites that it edits, what it looks for."""
        rows, tags = set(control_rows.tolist()), set(roster.tag_rows.tolist())
        if rows == tags == {0}:
            return PLAIN, Reach.NOWHERE, Search.NOTHING
        residuals = self._tables.residual_step(rows)
        search = roster.wanted.search
        if search:
            reach = Reach.NOWHERE if residuals is None and len(search) == 1 else Reach.EVERYWHERE
            return CLASSES, reach, search
        if residuals is not None:
            return CLASSES, Reach.of(residuals), Search.NOTHING
        edits = self._tables.edits(rows, roster.hides)
        return CLASSES if edits else PLAIN, Reach.NOWHERE, Search.NOTHING

    def _host(self, size: int, first: int) -> torch.Tensor:
        """Room for parameters of stages from a first byte on, and a step of this padded size."""
        room = self.stages.size - first + self._layouts[size].size
        return host_block(room, self._model.device)

    def _pad(self, block: torch.Tensor, size: int, count: int) -> DecodeInputs:
        """The arrays of a padded size on the host, with padding behind so many rows."""
        layout = self._layouts[size]
        inputs = DecodeInputs(*layout.arrays(block.numpy()[-layout.size :]))
        pad(inputs, count, self._block_start // 8)
        return inputs

    def _send(self, block: torch.Tensor, size: int) -> None:
        """Copy the host's block to where it ends on the device, in stream order between two steps.

        Step t reads the block, then comes this copy, then step t + 1 reads the block.
        """
        end = self.stages.size + self._layouts[size].size
        self._uploaded[end - len(block) : end].copy_(block, non_blocking=True)
        self._written = size
