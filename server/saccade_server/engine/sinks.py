"""Tell the model's probes which tokens of a step to examine for attention sinks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Batch

import numpy as np
import torch

from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_kernels.controls import CLASSES, NEVER_ATTEND
from saccade_kernels.sinks import SinkTags
from saccade_kernels.tables import TagTable
from saccade_server.engine.batch import Ints, Step, slots_of
from saccade_server.engine.scheduler import Chunk
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
            met=self._met,
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


def _is_whole(chunk: Chunk, rule: SinkRule) -> bool:
    """True if the chunk may change what the sequence's earlier positions are."""
    plan = chunk.sequence.plan
    assert plan is not None
    if chunk.start < chunk.sequence.prompt_length:
        return True
    possible = {plan.generated_tag, dict(rule.remap).get(plan.generated_tag)}
    return rule.require in possible


def _sink_tags(chunks: Batch[Chunk], upload: Uploader) -> SinkTags:
    """Tags of all examined positions so far, those of a shared prefix included, or of new ones."""
    slots, positions, bases = [], [], []
    remaps = np.tile(np.arange(CLASSES, dtype=np.int64), (len(chunks), 1))
    require = np.full(len(chunks), -1, dtype=np.int64)
    whole = np.zeros(len(chunks), dtype=np.uint8)
    threshold = np.zeros(len(chunks), dtype=np.float32)
    for index, chunk in enumerate(chunks):
        sequence, plan = chunk.sequence, chunk.sequence.plan
        assert plan is not None
        assert plan.sinks is not None
        whole[index] = _is_whole(chunk, plan.sinks)
        start, end = 0 if whole[index] else chunk.start, _examined(chunk, plan.sinks)
        base = _base_tags(plan, start, end)
        at = np.flatnonzero(base != NEVER_ATTEND)
        slots.append(slots_of(sequence.pages, start, end)[at])
        positions.append(start + at)
        bases.append(base[at])
        threshold[index] = plan.sinks.threshold
        for tag, as_sink in plan.sinks.remap:
            remaps[index, tag] = as_sink
        if plan.sinks.require is not None:
            require[index] = plan.sinks.require

    starts = np.cumsum([0, *map(len, bases)])
    rows = np.array([chunk.sequence.tag_row for chunk in chunks], dtype=np.int64)
    joined = (np.concatenate(part) for part in (slots, positions, bases))
    moved = upload(*joined, starts, threshold, rows, remaps, require, whole)
    return SinkTags(
        slots=moved[0],
        position=moved[1],
        base=moved[2],
        starts=moved[3],
        threshold=moved[4],
        tag_row=moved[5],
        remap=moved[6],
        require=moved[7],
        whole=moved[8],
    )


def _base_tags(plan: Plan, start: int, end: int) -> Ints:
    """Class of positions ``start`` to ``end`` if none is a sink: int64 [end - start]."""
    base = np.full(end - start, plan.generated_tag, dtype=np.int64)
    if start < plan.prompt_length:
        known = plan.base_tags()[start:end]
        base[: len(known)] = known
    return base
