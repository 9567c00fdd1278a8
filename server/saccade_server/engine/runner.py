"""Launch a step's chunks on the device: embeddings, image features, forward pass, draws.

A launch queues work and reads nothing back, but for images (families read grids, Qwen3-VL a mask).
What the device computes comes with :meth:`InFlight.wait`; until then a drawn token exists only
there, in a buffer that the next step takes its input from.
"""

from __future__ import annotations

from collections.abc import Sequence as Batch
from dataclasses import replace

import numpy as np
import torch

from saccade_kernels.batch import PAGE
from saccade_kernels.controls import ControlShape
from saccade_server.engine import graphs
from saccade_server.engine.batch import Ints, PromptPositions, Step, fill_in, pack
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.combined import Combined
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.counts import FormCount
from saccade_server.engine.decode import PaddedDecoder
from saccade_server.engine.drawn import DrawnRows
from saccade_server.engine.features import FeatureCache
from saccade_server.engine.flight import InFlight
from saccade_server.engine.logprobs import queue_logprobs
from saccade_server.engine.masks import FREE, FillMasks, Masks
from saccade_server.engine.outputs import PaddedDrawing
from saccade_server.engine.request import ImageInput
from saccade_server.engine.rules import HANDLERS
from saccade_server.engine.rules.base import Asking, EngineParts, Pending, ask
from saccade_server.engine.rules.handlers import Handlers, Looking
from saccade_server.engine.sampler import Drawing, draw, draw_rows
from saccade_server.engine.seats import Roster, Seats
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.singles import SinglesPacker
from saccade_server.engine.tables import DeviceTables
from saccade_server.engine.tally import DECODE, MIXED, StepTally
from saccade_server.engine.traces.tracing import TraceHandler
from saccade_server.engine.transfer import Download, Uploader
from saccade_server.engine.wants import Wants
from saccade_server.models.attention import ForwardStep
from saccade_server.models.family import ServedModel
from saccade_server.models.probes import settle
from saccade_server.models.tape import together

SMALL_WORK = 30_000_000
"""Multiply-adds of a step that one CPU thread does sooner than several that must be woken."""

MOST_DRAWN_WARM = 2
"""Sequences that a step draws for while the engine warms up, however few it is to serve."""


class Runner:
    """Owns everything on the device: model, cache, plan tables, image features."""

    def __init__(
        self,
        model: ServedModel,
        config: EngineConfig,
        max_model_len: int,
        cache_tokens: int,
        sink_dims: tuple[int, ...] = (),
    ) -> None:
        self.model = model
        self._threads = torch.get_num_threads()
        self._overlap = config.overlaps(model.device)
        self.num_pages = -(-cache_tokens // PAGE) + 1  # page 0 is padding
        self.tables = DeviceTables(
            ControlShape(model.layers, model.heads, model.head_dim),
            control_rows=config.max_programs + 1,
            tag_rows=config.max_num_seqs + 1,
            max_len=max_model_len,
            device=model.device,
            hidden_size=model.hidden_size,
            per_head_rows=config.max_per_head_classes + 1,
            invariant=config.batch_invariant,
        )
        self.features = FeatureCache(model, config.image_cache_bytes, config.batch_invariant)
        page = (self.num_pages, PAGE, model.kv_heads, model.head_dim)
        # Zeroed once: what runs before the first request attends to slots never written.
        self._keys = [self._zeros(page) for _ in range(model.layers)]
        self._values = [self._zeros(page) for _ in range(model.layers)]
        self._upload = Uploader(model.device)
        caches = (self._keys, self._values)
        self._positions: dict[Sequence, PromptPositions] = {}
        seats = max(config.max_num_seqs, MOST_DRAWN_WARM)
        pads = config.pads_decodes(model.device)
        parts = EngineParts(
            model,
            *caches,
            tables=self.tables,
            upload=self._upload,
            positions=self._positions_of,
            sink_dims=sink_dims,
            pads=pads,
        )
        self.rules = Handlers((*HANDLERS, TraceHandler), parts)
        pages = -(-max_model_len // PAGE)
        self._seats = Seats(seats, pages, self._positions_of, self.rules.wants)
        self._singles = SinglesPacker(self._seats, self.tables, model.axes, self._upload)
        self._drawn_rows = DrawnRows()
        self.tally = StepTally()
        self._captured = False
        self._decoder: PaddedDecoder | None = None
        if pads:
            sizes = (config.max_num_seqs, max_model_len)
            self._decoder = PaddedDecoder(
                model,
                caches,
                self.tables,
                self._seats,
                *sizes,
                self.rules.stages,
                self.rules.look_padded,
                self.rules.search,
            )
            self._drawn = self._decoder.drawn
        else:
            self._drawn = torch.zeros(seats, dtype=torch.int64, device=model.device)

    def capture(self, recorder: graphs.Recorder | None = None) -> graphs.Captured | None:
        """Capture the decode steps; None where there is nothing to capture.

        ``recorder``: None: what a GPU has, and elsewhere nothing.
        """
        if recorder is None and self.model.device.type == "cuda":
            recorder = graphs.CudaRecorder(self.model.device)
        if self._decoder is None or recorder is None:
            return None
        prepare, variants = self._decoder.idle, self._decoder.variants
        self._decoder.play, summary = graphs.capture(prepare, variants, recorder)
        self._captured = True
        return summary

    @torch.inference_mode()
    def rehearse(self) -> None:
        """Run the largest padded decode and stages once, on padding: the memory they take."""
        for variant in () if self._decoder is None else self._decoder.largest:
            assert self._decoder is not None
            self._decoder.idle(variant)()

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._positions.pop(sequence, None)
        self._drawn_rows.forget(sequence)
        self._seats.forget(sequence)
        self.rules.forget(sequence)

    def recover(self) -> None:
        """Free what a failed launch left, which must not be referred to any more.

        Raises:
            RuntimeError: the device itself has failed; nothing can run on it any more.
        """
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
            torch.cuda.empty_cache()

    def launch(self, chunks: Batch[Chunk], fill: FillMasks = lambda _: FREE) -> InFlight:
        """Queue the computation of ``chunks`` and the draw of the tokens behind them.

        Args:
            fill: called between the two, if grammars hold some of these tokens: it may wait for
                what was launched before, and end nothing.
        """
        tokens = sum(chunk.length for chunk in chunks)
        flight, decodes = self._launch(chunks, tokens, fill)
        if not decodes:
            self.tally.note(MIXED, tokens)
        else:
            self.tally.note(DECODE if self._decoder is None else self._decoder.played, tokens)
        return flight

    def forms(self) -> tuple[FormCount, ...]:
        """How many steps of each form were launched."""
        return self.tally.forms("captured" if self._captured else "padded")

    @torch.inference_mode()
    def _launch(self, chunks: Batch[Chunk], tokens: int, fill: FillMasks) -> tuple[InFlight, bool]:
        """What is queued, and whether that is a step of single tokens."""
        if self.model.device.type == "cuda":
            torch.cuda.set_device(self.model.device)  # a thread's own; kernels go where it says
        self._set_threads(tokens)
        self.tables.flush()  # a captured step reads them where they are and asks nobody
        roster = self._roster(chunks)
        if roster is not None and not roster.wanted.count:
            return self._decode(chunks, roster, fill), True
        moving = [chunk for chunk in chunks if _moves(chunk.sequence)]
        rows = [chunk.sequence.tag_row for chunk in moving]
        again = [chunk.sequence.tag_row for chunk in moving if not chunk.is_counted]
        with self.tables.uncounted(rows, unless_done=True), self.tables.uncounted(again):
            if roster is None:
                flight = self._ordinary(chunks, fill)
            else:
                flight = self._decode(chunks, roster, fill)
        # Without overlap nothing runs when a sequence ends, and its counters are read then.
        if not self._overlap or not moving:
            return flight, roster is not None
        counted = tuple(chunk.sequence for chunk in moving)
        moved = Download([self.tables.count_moved(rows)])
        return replace(flight, counted=counted, moved=moved), roster is not None

    def _roster(self, chunks: Batch[Chunk]) -> Roster | None:
        """The rows of a step of which this says all; None: it is to be looked at chunk by chunk."""
        if not all(c.length == 1 and c.samples for c in chunks) or len(chunks) > self._seats.count:
            return None
        roster = self._seats.roster(chunks)
        if roster.wanted.layers:
            return None
        if self._decoder is None and roster.wanted.probes:
            return None
        for row in roster.prompt_rows(_starts(chunks)).tolist():
            wants = self.rules.wants(roster.sequences[row], decodes=False)
            if wants & Wants.LAYERS or _shows_image(chunks[row]):
                return None
        return roster

    def _decode(self, chunks: Batch[Chunk], roster: Roster, fill: FillMasks) -> InFlight:
        """Queue a step of single tokens, in fixed places if there are such."""
        asking = ask(chunks) if roster.wanted.rules else {}
        if self._decoder is None:
            self.rules.before(asking)
        starts = _starts(chunks)
        is_changed = roster.changes_logits(starts)
        if len(roster.held):
            is_changed |= self.rules.draw_unmasked(roster)
        if self._decoder is None:  # stages are padded steps'
            is_changed |= roster.wanted.combination
        params = [r.sampling for r in roster.requests] if roster.wanted.logprobs else []
        if self._decoder is None:
            logits = self._run_singles(roster, starts)
        else:
            logits = self._decoder.run(roster, starts, self._drawn_rows, behind=not is_changed)
        masks = fill(roster.holding) if len(roster.held) else FREE
        if is_changed:
            kept = {} if self._decoder is None else self.rules.kept(self._decoder.outputs, asking)
            return self._choose(chunks, logits, asking, kept, masks)
        drawing: Drawing | PaddedDrawing
        pending: tuple[Pending, ...] = ()
        if self._decoder is None:
            draws = self._seats.draws(roster, starts + 1 - roster.prompt_lengths)
            edited = masks.apply(logits, logits, roster.sequences, self._upload)
            drawing = draw_rows(logits, edited, draws, params, self._upload)
            if self._overlap:
                self._drawn[: len(chunks)].copy_(drawing.tokens)
        else:
            self._decoder.go_behind(roster, masks)
            tokens = self._drawn[: len(chunks)]
            logprobs = queue_logprobs(logits, params, tokens, self._upload)
            drawing = self._decoder.outputs.take(len(chunks), logprobs, roster.drawing)
            pending = self.rules.staged(asking)
        self._drawn_rows.note(roster.sequences, roster.leaders)
        return InFlight(tuple(chunks), drawing, pending=pending)

    def _run_singles(self, roster: Roster, starts: Ints) -> torch.Tensor:
        """Logits of a row of each of the roster's sequences."""
        step = self._singles.pack(roster, starts, self._drawn_rows, self._drawn)
        caches = (self._keys, self._values)
        search = roster.wanted.search
        looks = self.rules.look_padded(search, step.inputs) if search else ((), ())
        forward = ForwardStep(step.attention, *caches, *looks, step.residuals)
        embeddings = self.model.embed(step.tokens)
        hidden = self.model.forward(embeddings, step.positions, forward)
        return self.model.logits(hidden, self.tables.invariant)

    def _ordinary(self, chunks: Batch[Chunk], fill: FillMasks) -> InFlight:
        """Queue a step as it comes."""
        asking = ask(chunks)
        self.rules.before(asking)
        positions = [self._positions_of(chunk.sequence) for chunk in chunks]
        drawn = self._drawn_rows.mapping()
        step = pack(chunks, positions, self.tables, self._upload, drawn)
        looking = self.rules.look(step, asking)
        logits = self._compute(step, looking)
        held = tuple(c.sequence for c in chunks if c.sequence.grammar is not None and c.draws)
        return self._choose(chunks, logits, asking, looking, fill(held) if held else FREE)

    def _choose(
        self,
        chunks: Batch[Chunk],
        logits: torch.Tensor,
        asking: Asking,
        looking: Looking,
        masks: Masks,
    ) -> InFlight:
        """Queue the draws of a step, and what the rules of its plans are to know."""
        sampling = [chunk for chunk in chunks if chunk.samples]
        rows = self.rules.combine(logits, sampling, asking, looking, masks)
        drawing = self._draw(sampling, rows) if sampling else None
        if drawing is not None:
            rows = replace(rows, tokens=drawing.tokens)
        pending = self.rules.launched(rows, asking, looking)
        return InFlight(tuple(chunks), drawing, pending=pending)

    def read_moved(self, sequence: Sequence) -> None:
        """Note a sequence's counters in it; waits for the device."""
        (sequence.moved,) = self.tables.count_moved([sequence.tag_row]).cpu().numpy()

    def _compute(self, step: Step, looking: Looking) -> torch.Tensor:
        """Logits of the chunks that sample."""
        embeddings, visual, deepstack = self._embed(step)
        probes = tuple(probe for look in looking.values() for probe in look.probes)
        forward = ForwardStep(
            batch=replace(step.attention, settles=settle(probes)),
            key_caches=self._keys,
            value_caches=self._values,
            probes=probes,
            measures=tuple(measure for look in looking.values() for measure in look.measures),
            residuals=step.residuals,
            tape=together([look.tape for look in looking.values() if look.tape is not None]),
        )
        hidden = self.model.forward(embeddings, step.positions, forward, visual, deepstack)
        return self.model.logits(hidden.index_select(0, step.sampled), self.tables.invariant)

    def _draw(self, sampling: Batch[Chunk], rows: Combined) -> Drawing:
        """Queue the draws, one from each of these rows."""
        drawn = [chunk for chunk in sampling if chunk.draws]
        sequences = [chunk.sequence for chunk in drawn]
        positions = [chunk.end - chunk.sequence.prompt_length for chunk in drawn]
        found = draw(rows.logits, sequences, positions, self._upload, rows.usable, rows.edited)
        if self._overlap:
            self._drawn[: len(sequences)].copy_(found.tokens)
            self._drawn_rows.note(sequences)
        return found

    def _set_threads(self, tokens: int) -> None:
        if self.model.device.type == "cpu" and self._threads > 1:
            small = tokens * self.model.parameters < SMALL_WORK
            few = small and not self.tables.invariant  # sums go by the number of threads
            torch.set_num_threads(1 if few else self._threads)

    def _zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape, dtype=self.model.dtype, device=self.model.device)

    def _positions_of(self, sequence: Sequence) -> PromptPositions:
        if sequence not in self._positions:
            request = sequence.request
            images = [(image.start, image.length, image.grid) for image in request.images]
            found = self.model.positions(request.tokens, images)
            self._positions[sequence] = PromptPositions(found.table.numpy(), found.delta)
        return self._positions[sequence]

    def _embed(
        self, step: Step
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]:
        """Token embeddings with image features in their places.

        Returns:
            [T, hidden]; which rows are visual, int64 [N], or None; and, for models that have them,
            one [N, hidden] tensor a deepstack level.
        """
        tokens = step.tokens
        if step.sources is not None:
            tokens = fill_in(tokens, step.sources, self._drawn)
        embeddings = self.model.embed(tokens)
        pieces = [
            (start + image.start + first - chunk.start, image, first, last)
            for chunk, start in zip(step.chunks, step.starts, strict=True)
            for image in chunk.sequence.request.images
            for first, last in [_overlap(chunk, image)]
            if first < last
        ]
        if not pieces:
            return embeddings, None, ()
        features = self.features.get(image for _, image, _, _ in pieces)
        rows = np.concatenate([np.arange(row, row + b - a) for row, _, a, b in pieces])
        (index,) = self._upload(rows)
        values = [features[image.digest].features[a:b] for _, image, a, b in pieces]
        embeddings = embeddings.index_copy(0, index, torch.cat(values).to(embeddings.dtype))
        levels = len(features[pieces[0][1].digest].deepstack)
        deepstack = tuple(
            torch.cat([features[image.digest].deepstack[k][a:b] for _, image, a, b in pieces])
            for k in range(levels)
        )
        return embeddings, index, deepstack


def _moves(sequence: Sequence) -> bool:
    """True if some edit may move the sequence's class masses, which is counted."""
    return sequence.plan is not None and bool(sequence.plan.moved_phases)


def _starts(chunks: Batch[Chunk]) -> Ints:
    return np.array([chunk.start for chunk in chunks], np.int64)


def _shows_image(chunk: Chunk) -> bool:
    """True if some image has a feature among the chunk's tokens."""
    images = chunk.sequence.request.images if chunk.start < chunk.sequence.prompt_length else ()
    return any(first < last for first, last in (_overlap(chunk, image) for image in images))


def _overlap(chunk: Chunk, image: ImageInput) -> tuple[int, int]:
    """First and last (exclusive) feature of ``image`` that falls into ``chunk``."""
    first = max(chunk.start - image.start, 0)
    last = min(chunk.end - image.start, image.length)
    return first, last
