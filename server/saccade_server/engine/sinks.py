"""Tell the model's probes which tokens of a step to examine for attention sinks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Batch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_interventions.rules import SinkRule
from saccade_kernels.controls import CLASSES
from saccade_kernels.sinks import SinkTags
from saccade_kernels.tables import TagTable
from saccade_server.engine.batch import Ints, Step, slots_of
from saccade_server.engine.examined import Examined, examined
from saccade_server.engine.scheduler import Chunk
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Uploader
from saccade_server.models.probes import SinkProbe


class SinkFinder:
    """Keeps the sink scores of every cached token and builds each step's probes.

    Scores live beside the keys and values, by cache slot, so that a shared prefix brings its
    scores along; a page key names the rule they were made by (see prefix.py). A chunk of the prompt
    settles the tags of all positions so far, generated tokens only their own, unless they could be
    what the rule requires.
    """

    def __init__(self, layers: int, slots: int, tags: TagTable, device: torch.device) -> None:
        self._scores: torch.Tensor | None = None
        self._met: torch.Tensor | None = None
        self._shape = (layers, slots)
        self._tags = tags
        self._device = device
        self._upload = Uploader(device)
        self._examined: dict[Sequence, Examined] = {}

    @staticmethod
    def looks(chunks: Batch[Chunk]) -> bool:
        """True if a step of these chunks needs a probe."""
        return any(_asks(chunk) for chunk in chunks)

    def probes(self, step: Step) -> tuple[SinkProbe, ...]:
        """One probe for each different (dimensions, layers) asked for by this step's chunks."""
        groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
        for index, chunk in enumerate(step.chunks):
            rule = _rule(chunk)
            if rule is not None and _asks(chunk):
                groups[rule.dims, rule.layers].append(index)
        return tuple(self._probe(step, *group, members) for group, members in groups.items())

    def _probe(
        self, step: Step, dims: tuple[int, ...], layers: tuple[int, ...], members: Batch[int]
    ) -> SinkProbe:
        if self._scores is None or self._met is None:  # nothing is spent before a request asks
            self._scores = torch.zeros(self._shape, dtype=torch.float32, device=self._device)
            met = (self._shape[0], len(self._tags.tags))
            self._met = torch.zeros(met, dtype=torch.uint8, device=self._device)
        chunks = [step.chunks[i] for i in members]
        pairs = [(step.starts[i], _scored(chunk)) for i, chunk in zip(members, chunks, strict=True)]
        rows = [np.arange(start, start + scored) for start, scored in pairs]
        slots = [slots_of(c.sequence.pages, c.start, c.start + _scored(c)) for c in chunks]
        scored = np.concatenate(rows), np.concatenate(slots), np.array(dims, dtype=np.int64)
        at, where, which, *tags = self._upload(*scored, *self._tag_arrays(chunks))
        return SinkProbe(
            layers=frozenset(layers),
            rows=at,
            dims=which,
            slots=where,
            scores=self._scores,
            tags=SinkTags(*tags),
            tag_table=self._tags.tags,
            met=self._met,
        )

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._examined.pop(sequence, None)

    def _tag_arrays(self, chunks: Batch[Chunk]) -> list[NDArray[Any]]:
        """Fields of SinkTags: all examined positions so far, those of a shared prefix included,
        or new ones alone.
        """
        remaps = np.tile(np.arange(CLASSES, dtype=np.int64), (len(chunks), 1))
        require = np.full(len(chunks), -1, dtype=np.int64)
        whole = np.zeros(len(chunks), dtype=np.uint8)
        threshold = np.zeros(len(chunks), dtype=np.float32)
        found: list[Ints] = []
        for index, chunk in enumerate(chunks):
            rule, sequence = _rule(chunk), chunk.sequence
            assert rule is not None
            whole[index] = _is_whole(chunk, rule)
            end = _examined(chunk, rule)
            if whole[index]:
                known = self._examined.setdefault(sequence, Examined())
                found.append(known.until(sequence, end))
            else:
                found.append(examined(sequence, chunk.start, end))
            threshold[index] = rule.threshold
            for tag, as_sink in rule.remap:
                remaps[index, tag] = as_sink
            if rule.require is not None:
                require[index] = rule.require
        starts = np.cumsum([0, *(some.shape[1] for some in found)])
        rows = np.array([chunk.sequence.tag_row for chunk in chunks], dtype=np.int64)
        slots, positions, bases = np.concatenate(found, axis=1)
        return [slots, positions, starts, bases, threshold, rows, remaps, require, whole]


def _rule(chunk: Chunk) -> SinkRule | None:
    plan = chunk.sequence.plan
    return plan.rule(SinkRule) if plan is not None else None


def _asks(chunk: Chunk) -> bool:
    """True if the chunk has tokens to examine."""
    rule = _rule(chunk)
    return rule is not None and chunk.start < _examined(chunk, rule)


def _examined(chunk: Chunk, rule: SinkRule) -> int:
    """Positions before this one are examined."""
    return chunk.end if rule.generated else min(chunk.end, chunk.sequence.prompt_length)


def _scored(chunk: Chunk) -> int:
    rule = _rule(chunk)
    assert rule is not None
    return _examined(chunk, rule) - chunk.start


def _is_whole(chunk: Chunk, rule: SinkRule) -> bool:
    """True if the chunk may change what the sequence's earlier positions are."""
    plan = chunk.sequence.plan
    assert plan is not None
    if chunk.start < chunk.sequence.prompt_length:
        return True
    possible = {plan.generated_tag, dict(rule.remap).get(plan.generated_tag)}
    return rule.require in possible
