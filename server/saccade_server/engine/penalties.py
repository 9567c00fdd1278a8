"""Logit bias, penalties, tokens held back or forced: changes to a step's rows of logits."""

from __future__ import annotations

from collections.abc import Sequence as Batch
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_server.engine.masks import FREE, Masks
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Uploader

FORCED = 1e35
"""The logit of the token that must be drawn."""

LARGEST = 1e30
"""No logit is larger after a repetition penalty near 0, or its row would have no softmax."""


@dataclass
class _Cells:
    """Places in flattened logits, and one number for each."""

    places: list[NDArray[np.int64]] = field(default_factory=list)
    values: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, row: int, width: int, tokens: Batch[int], values: NDArray[np.float64]) -> None:
        self.places.append(np.array(tokens, dtype=np.int64) + row * width)
        self.values.append(values)

    def upload(self, upload: Uploader, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        places, values = upload(np.concatenate(self.places), np.concatenate(self.values))
        return places, values.to(dtype)


def edit_logits(
    logits: torch.Tensor, sequences: Batch[Sequence], upload: Uploader, masks: Masks = FREE
) -> torch.Tensor:
    """Bias, then penalties, then -inf for tokens held back, then masks of grammars.

    Gives ``logits`` itself if nobody asks. Repetition counts the prompt too; presence and frequency
    count the output only. A forced token gets :data:`FORCED`, whatever else is asked for.
    """
    bias, repeated, counted, barred, forced = (_Cells() for _ in range(5))
    width = logits.shape[-1]
    for row, sequence in enumerate(sequences):
        p = sequence.request.sampling
        if p.logit_bias:
            values = np.array(list(p.logit_bias.values()), dtype=np.float32).astype(np.float64)
            bias.add(row, width, [*p.logit_bias], values)
        if sequence.penalised:
            _penalise(row, width, sequence, repeated, counted)
        if sequence.barred:
            barred.add(row, width, sequence.barred, np.full(len(sequence.barred), -np.inf))
        position = sequence.length - sequence.prompt_length
        if position < len(p.forced):
            forced.add(row, width, [p.forced[position]], np.array([FORCED]))
    if not any(cells.places for cells in (bias, repeated, counted, barred, forced)):
        return masks.apply(logits, logits, sequences, upload)
    edited = logits.clone()
    flat = edited.view(-1)
    if bias.places:
        flat.index_add_(0, *bias.upload(upload, logits.dtype))
    if repeated.places:
        places, factors = repeated.upload(upload, logits.dtype)
        seen = flat.index_select(0, places)
        changed = torch.where(seen > 0, seen / factors, seen * factors)
        flat.index_copy_(0, places, changed.clamp(max=LARGEST))
    if counted.places:
        flat.index_add_(0, *counted.upload(upload, logits.dtype), alpha=-1)
    if barred.places:
        flat.index_copy_(0, *barred.upload(upload, logits.dtype))
    if forced.places:
        flat.index_copy_(0, *forced.upload(upload, logits.dtype))
    return masks.apply(logits, edited, sequences, upload)


def _penalise(row: int, width: int, sequence: Sequence, repeated: _Cells, counted: _Cells) -> None:
    p, output = sequence.request.sampling, sequence.output_counts
    if p.repetition_penalty != 1:
        seen = [*sequence.request.distinct.union(output)]
        repeated.add(row, width, seen, np.full(len(seen), p.repetition_penalty))
    if output and (p.presence_penalty or p.frequency_penalty):
        counts = np.array([*output.values()], dtype=np.float32)
        penalty = np.float32(p.frequency_penalty) * counts + np.float32(p.presence_penalty)
        counted.add(row, width, [*output], penalty.astype(np.float64))
