"""Run a step's chunks through the model: embeddings, image features, forward pass, logits."""

from __future__ import annotations

from collections.abc import Sequence as Batch

import numpy as np
import torch

from saccade_kernels.batch import PAGE
from saccade_kernels.controls import ControlShape
from saccade_server.engine.batch import PromptPositions, Step, pack
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.features import FeatureCache
from saccade_server.engine.request import ImageInput
from saccade_server.engine.scheduler import Chunk
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.sinks import SinkFinder
from saccade_server.engine.tables import DeviceTables
from saccade_server.models.attention import ForwardStep
from saccade_server.models.family import ServedModel

SMALL_WORK = 30_000_000
"""Multiply-adds of a step that one CPU thread does sooner than several that must be woken."""


class Runner:
    """Owns everything on the device: model, cache, plan tables, image features."""

    def __init__(self, model: ServedModel, config: EngineConfig, max_model_len: int) -> None:
        self.model = model
        self._threads = torch.get_num_threads()
        self.num_pages = -(-config.cache_tokens // PAGE) + 1  # page 0 is padding
        shape = ControlShape(model.layers, model.heads, model.head_dim)
        self.tables = DeviceTables(
            shape,
            control_rows=config.max_programs + 1,
            tag_rows=config.max_num_seqs + 1,
            max_len=max_model_len,
            device=model.device,
        )
        self.features = FeatureCache(model, config.image_cache_bytes)
        page = (self.num_pages, PAGE, model.kv_heads, model.head_dim)
        # Zeroed once: a slot never written meets a weight of exactly 0, and 0 x NaN is NaN.
        self._keys = [self._zeros(page) for _ in range(model.layers)]
        self._values = [self._zeros(page) for _ in range(model.layers)]
        slots = self.num_pages * PAGE
        self._sinks = SinkFinder(model.layers, slots, self.tables.tags, model.device)
        self._positions: dict[Sequence, PromptPositions] = {}

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._positions.pop(sequence, None)

    @torch.inference_mode()
    def run(self, chunks: Batch[Chunk]) -> tuple[Step, torch.Tensor]:
        """Compute ``chunks``.

        Returns:
            The packed step, and float32 logits [sampling chunks, vocabulary].
        """
        self._set_threads(sum(chunk.length for chunk in chunks))
        positions = [self._positions_of(chunk.sequence) for chunk in chunks]
        step = pack(chunks, positions, self.tables, self.model.device)
        embeddings, visual, deepstack = self._embed(step)
        forward = ForwardStep(
            batch=step.attention,
            key_caches=self._keys,
            value_caches=self._values,
            sinks=self._sinks.probes(step),
        )
        hidden = self.model.forward(embeddings, step.positions, forward, visual, deepstack)
        return step, self.model.logits(hidden[step.sampled])

    def _set_threads(self, tokens: int) -> None:
        if self.model.device.type == "cpu" and self._threads > 1:
            small = tokens * self.model.parameters < SMALL_WORK
            torch.set_num_threads(1 if small else self._threads)

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
            [T, hidden]; which rows are visual, bool [T], or None; and, for models that have them,
            one [visual rows, hidden] tensor a deepstack level.
        """
        embeddings = self.model.embed(step.tokens)
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
        index = torch.from_numpy(rows).to(self.model.device)
        values = [features[image.digest].features[a:b] for _, image, a, b in pieces]
        embeddings = embeddings.index_copy(0, index, torch.cat(values).to(embeddings.dtype))
        visual = torch.zeros(len(embeddings), dtype=torch.bool, device=self.model.device)
        visual[index] = True
        levels = len(features[pieces[0][1].digest].deepstack)
        deepstack = tuple(
            torch.cat([features[image.digest].deepstack[k][a:b] for _, image, a, b in pieces])
            for k in range(levels)
        )
        return embeddings, visual, deepstack


def _overlap(chunk: Chunk, image: ImageInput) -> tuple[int, int]:
    """First and last (exclusive) feature of ``image`` that falls into ``chunk``."""
    first = max(chunk.start - image.start, 0)
    last = min(chunk.end - image.start, image.length)
    return first, last
