"""Tell the model's probes which tokens of a step to examine for attention sinks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Batch
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_kernels.controls import CLASSES
from saccade_kernels.sinks import SinkTags
from saccade_server.engine.batch import Ints, Step, slots_of
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.inputs import DecodeInputs
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.rules.base import Asked, EngineParts, Looks, RuleHandler
from saccade_server.engine.rules.examined import Examined, examined
from saccade_server.engine.rules.sink_stage import SinkStage
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Stage
from saccade_server.engine.wants import Search, Wants
from saccade_server.models.probes import SinkProbe


class SinkHandler(RuleHandler[SinkRule]):
    """Builds each step's probes, which score its tokens and settle tags.

    Scores live beside the keys and values, so that a shared prefix brings its
    scores along; a page key names the rule they were made by (see prefix.py). A chunk of the prompt
    settles the tags of all positions so far, generated tokens only their own, unless they could be
    what the rule requires.
    """

    kind = SinkRule

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        self._met: torch.Tensor | None = None
        self._examined: dict[Sequence, Examined] = {}
        self._stage: SinkStage | None = None
        self.search = Search.OWN_TAGS if parts.sink_dims and parts.pads else Search.NOTHING

    def why_refused(self, request: GenerateRequest, rule: SinkRule) -> str | None:
        """A token has one place for its score, so a trace cannot have it scored by others."""
        if request.trace is None or not request.trace.needs_sinks:
            return None
        if rule.dims == self.parts.sink_dims:
            return None
        return "its trace and its plan look for sinks in different dimensions"

    def stages(self, outputs: StepOutputs) -> Batch[Stage]:
        """What tells the device which generated tokens a padded step examines."""
        if not self.search:
            return ()
        layers = self.parts.model.layers
        self._stage = SinkStage(outputs.most, layers, self.parts.device, self._examines)
        self._probe_of_all = self._pooled(frozenset(range(layers)), self.parts.sink_dims)
        return (self._stage,)

    def look_padded(self, inputs: DecodeInputs) -> Looks:
        """One probe for all rows of a padded step."""
        assert self._stage is not None
        return Looks((self._stage.probe(inputs, self._probe_of_all),))

    def wants(self, sequence: Sequence, rule: SinkRule, decodes: bool) -> Wants:
        """A probe, where the row is examined; a padded step has one for most rules."""
        if not decodes:
            return Wants.LAYERS
        if self._stage is not None and self._examines(sequence) is not None:
            return Wants.OWN_TAG
        return Wants.LAYERS if rule.generated else Wants.NOTHING

    def look(self, step: Step, asked: Batch[Asked[SinkRule]]) -> Looks | None:
        """One probe for each different (dimensions, layers) asked for by this step's chunks."""
        groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Asked[SinkRule]]]
        groups = defaultdict(list)
        for a in asked:
            if a.chunk.start < _examined(a.chunk, a.rule):
                groups[a.rule.dims, a.rule.layers].append(a)
        if not groups:
            return None
        return Looks(tuple(self._probe(step, *key, members) for key, members in groups.items()))

    def _probe(
        self,
        step: Step,
        dims: tuple[int, ...],
        layers: tuple[int, ...],
        members: Batch[Asked[SinkRule]],
    ) -> SinkProbe:
        spans = [(a.chunk, step.starts[a.at], _examined(a.chunk, a.rule)) for a in members]
        rows = [np.arange(start, start + end - chunk.start) for chunk, start, end in spans]
        slots = [slots_of(chunk.sequence.pages, chunk.start, end) for chunk, _, end in spans]
        scored = np.concatenate(rows), np.concatenate(slots)
        at, where, *settled = self.parts.upload(*scored, *self._tag_arrays(members))
        probe = self._pooled(frozenset(layers), dims)
        settles = any(chunk.length == 1 and _is_whole(chunk, rule) for rule, chunk, *_ in members)
        return replace(probe, rows=at, slots=where, tags=SinkTags(*settled), settles=settles)

    def _pooled(self, layers: frozenset[int], dims: tuple[int, ...]) -> SinkProbe:
        """A probe of nothing, with the pools of scores and of what is met."""
        tags, device = self.parts.tables.tags.tags, self.parts.device
        if self._met is None:  # nothing is spent before a request asks
            self._met = torch.zeros(tags.shape[1], len(tags), dtype=torch.uint8, device=device)
        (which, none) = self.parts.upload(np.array(dims, dtype=np.int64), np.zeros(0, np.int64))
        nobody = SinkTags(*[none] * 9)
        return SinkProbe(layers, none, which, none, self.parts.sink_scores, nobody, tags, self._met)

    def _examines(self, sequence: Sequence) -> SinkRule | None:
        """The rule by which a padded step examines the sequence's generated tokens, if it does.

        Only in the model's own dimensions, and if no such token can be what the rule requires.
        """
        plan = sequence.plan
        rule = None if plan is None else plan.rule(SinkRule)
        if plan is None or rule is None or not rule.generated:
            return None
        usual = rule.dims == self.parts.sink_dims and not _may_be_required(plan, rule)
        return rule if usual else None

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._examined.pop(sequence, None)

    def _tag_arrays(self, members: Batch[Asked[SinkRule]]) -> list[NDArray[Any]]:
        """Fields of SinkTags: all examined positions so far, those of a shared prefix included,
        or new ones alone.
        """
        remaps = np.tile(np.arange(CLASSES, dtype=np.int64), (len(members), 1))
        require = np.full(len(members), -1, dtype=np.int64)
        whole = np.zeros(len(members), dtype=np.uint8)
        threshold = np.zeros(len(members), dtype=np.float32)
        found: list[Ints] = []
        for index, (rule, chunk, *_) in enumerate(members):
            sequence = chunk.sequence
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
        rows = np.array([a.chunk.sequence.tag_row for a in members], dtype=np.int64)
        slots, positions, bases = np.concatenate(found, axis=1)
        return [slots, positions, starts, bases, threshold, rows, remaps, require, whole]


def _examined(chunk: Chunk, rule: SinkRule) -> int:
    """Positions before this one are examined."""
    return chunk.end if rule.generated else min(chunk.end, chunk.sequence.prompt_length)


def _is_whole(chunk: Chunk, rule: SinkRule) -> bool:
    """True if the chunk may change what the sequence's earlier positions are."""
    plan = chunk.sequence.plan
    assert plan is not None
    return chunk.start < chunk.sequence.prompt_length or _may_be_required(plan, rule)


def _may_be_required(plan: Plan, rule: SinkRule) -> bool:
    """True if a generated token may have the class that the rule requires."""
    return rule.require in {plan.generated_tag, dict(rule.remap).get(plan.generated_tag)}
