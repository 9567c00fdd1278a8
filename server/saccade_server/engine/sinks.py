"""Tell the model's probes which tokens of a step to examine for attention sinks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Batch

import numpy as np
import torch

from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, TagTable
from saccade_kernels.sinks import SinkTags
from saccade_server.engine.batch import Step, slots_of
from saccade_server.engine.scheduler import Chunk
from saccade_server.engine.transfer import Uploader
from saccade_server.models.probes import SinkProbe


class SinkFinder:
    """Keeps the sink scores of every cached token and builds each step's probes.

    Scores live beside the keys and values, by cache slot, so that a shared prefix brings its
    scores along; a page key names the rule they were made by (see prefix.py).
    """

    def __init__(self, layers: int, slots: int, tags: TagTable, device: torch.device) -> None:
        self._scores: torch.Tensor | None = None
        self._shape = (layers, slots)
        self._tags = tags
        self._device = device
        self._upload = Uploader(device)

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
        if self._scores is None:  # nothing is spent on models whose requests never ask
            self._scores = torch.zeros(self._shape, dtype=torch.float32, device=self._device)
        rows = [
            np.arange(step.starts[i], step.starts[i] + _scored(step.chunks[i])) for i in members
        ]
        slots = [
            slots_of(c.sequence.pages, c.start, c.start + _scored(c))
            for c in (step.chunks[i] for i in members)
        ]
        at, where, which = self._upload(
            np.concatenate(rows), np.concatenate(slots), np.array(dims, dtype=np.int64)
        )
        return SinkProbe(
            layers=frozenset(layers),
            rows=at,
            dims=which,
            slots=where,
            scores=self._scores,
            tags=_sink_tags([step.chunks[i] for i in members], self._upload),
            tag_table=self._tags.tags,
        )


def _rule(chunk: Chunk) -> SinkRule | None:
    plan = chunk.sequence.plan
    return plan.sinks if plan is not None else None


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


def _sink_tags(chunks: Batch[Chunk], upload: Uploader) -> SinkTags:
    """Tags of all examined positions so far, those of a shared prefix included."""
    slots, positions, sequences, bases, thresholds, tag_rows = [], [], [], [], [], []
    remaps = np.tile(np.arange(CLASSES, dtype=np.int64), (len(chunks), 1))
    require = np.full(len(chunks), -1, dtype=np.int64)
    for index, chunk in enumerate(chunks):
        sequence, plan = chunk.sequence, chunk.sequence.plan
        assert plan is not None
        assert plan.sinks is not None
        end = _examined(chunk, plan.sinks)
        base = _base_tags(plan, end)
        at = np.flatnonzero(base != NEVER_ATTEND)
        slots.append(slots_of(sequence.pages, 0, end)[at])
        positions.append(at)
        sequences.append(np.full(at.size, index, dtype=np.int64))
        bases.append(base[at])
        thresholds.append(np.full(at.size, plan.sinks.threshold, dtype=np.float32))
        tag_rows.append(np.full(at.size, sequence.tag_row, dtype=np.int64))
        for tag, as_sink in plan.sinks.remap:
            remaps[index, tag] = as_sink
        if plan.sinks.require is not None:
            require[index] = plan.sinks.require

    parts = (slots, positions, sequences, bases, thresholds, tag_rows)
    joined = upload(*(np.concatenate(part) for part in parts), remaps, require)
    return SinkTags(
        slots=joined[0],
        position=joined[1],
        sequence=joined[2],
        base=joined[3],
        threshold=joined[4],
        tag_row=joined[5],
        remap=joined[6],
        require=joined[7],
    )


def _base_tags(plan: Plan, end: int) -> np.ndarray:
    """Class of positions before ``end`` if none is a sink: int64 [end]."""
    base = np.full(end, plan.generated_tag, dtype=np.int64)
    known = min(end, plan.prompt_length)
    base[:known] = plan.base_tags()[:known]
    return base
