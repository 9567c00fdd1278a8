"""Key classes of single heads, found in the step whose rows follow them (ACT).

A plan with a HeadSinkRule computes its prompt in one step and its generated rows one at a time,
again after preemption too, so that every row sees the classes that it is to see: they are written
layer by layer while the row is computed (models/head_sinks.py), into table rows that are the
sequence's own. A prompt begins its sums, and each generated row is added to them once, whatever
becomes of its step: that is counted on the device, so a captured step does it too.

    prompt          its criterion is written, then in each layer: sums over all rows, their classes
    generated row   running, row: in each layer one launch; frozen: the prompt's; off: none
"""

from __future__ import annotations

from collections.abc import Sequence as Batch
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_interventions.phases import Phase
from saccade_interventions.rules import HeadSinkRule
from saccade_kernels.head_sinks import HeadSinkOption, HeadSinkTables
from saccade_kernels.tables import PerHeadTable
from saccade_server.engine.batch import Step, attention_of
from saccade_server.engine.inputs import DecodeInputs
from saccade_server.engine.rules.base import Asked, EngineParts, Looks, RuleHandler
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.wants import Search, Wants
from saccade_server.models.attention import AttentionMeasure
from saccade_server.models.head_sinks import DecodeSinks, PromptSinks

SEARCHING = ("running", "row")
"""Which ``decode`` of a rule find classes for generated rows."""

Asking = Batch[Asked[HeadSinkRule]]


class HeadSinkHandler(RuleHandler[HeadSinkRule]):
    """Writes criteria, and builds the measures of each step. It keeps nothing of a sequence."""

    kind = HeadSinkRule
    search = Search.PER_HEAD_CLASSES

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        if parts.device.type != "cpu":  # memory that is asked for later may be the cache's by then
            assert self.tables is not None

    @cached_property
    def tables(self) -> HeadSinkTables:
        """What finds classes of single heads; made at the start, but on a CPU when first needed."""
        tables = self.parts.tables
        rows, max_len = tables.per_head_rows, tables.tags.tags.shape[2]
        room = (rows - 1) * tables.shape.layers * tables.shape.heads * max_len
        return HeadSinkTables.allocate(rows, tables.shape, room, self.parts.device)

    def wants(self, sequence: Sequence, rule: HeadSinkRule, decodes: bool) -> Wants:
        """A last prompt row goes by what its whole prompt had; see :meth:`look`."""
        if not decodes:
            return Wants.LAYERS
        return Wants.CLASSES_FOUND if _finds(sequence, rule) else Wants.NOTHING

    def before(self, asked: Asking) -> None:
        """Write the criteria of prompts, and where their heads' sums are."""
        prompts = [a for a in asked if a.chunk.start == 0]
        if prompts:
            self._write(prompts)

    def look(self, step: Step, asked: Asking) -> Looks | None:
        """One measure for the single rows of a step and one for its prompts, as far as any ask."""
        prompts = [a for a in asked if _is_prompt(a)]
        singles = [a for a in asked if _searches(a)]
        found: list[AttentionMeasure] = [self._prompts(step, prompts)] if prompts else []
        if singles:
            (rows,) = self.parts.upload(np.array([a.at for a in singles], np.int32))
            found.append(DecodeSinks(_layers(singles), rows, self.tables))
        return Looks(measures=tuple(found)) if found else None

    def look_padded(self, inputs: DecodeInputs) -> Looks:
        """In all layers, as which heads ask is known to the device."""
        layers = frozenset(range(self.parts.model.layers))
        return Looks(measures=(DecodeSinks(layers, inputs.searched, self.tables),))

    @property
    def _per_head(self) -> PerHeadTable:
        found = self.parts.tables.tags.per_head
        assert found is not None
        return found

    def _write(self, prompts: Asking) -> None:
        tables, rules = self.tables, [a.rule for a in prompts]
        held = [a.chunk.sequence.per_head_row for a in prompts]
        # A prompt of one token has no sinks, so if it is all that is calibrated, nothing is.
        followed = [
            row if _is_prompt(a) or a.rule.decode != "off" else 0
            for a, row in zip(prompts, held, strict=True)
        ]
        rows, tag_rows, own, thresholds, options, least_rows, places = self.parts.upload(
            np.array(held, np.int64),
            np.array([a.chunk.sequence.tag_row for a in prompts], np.int64),
            np.array(followed, np.int32),
            np.array([rule.threshold for rule in rules], np.float32),
            np.array([_options(rule) for rule in rules], np.int32),
            np.array([rule.least_rows for rule in rules], np.int32),
            np.stack([self._places(*pair) for pair in zip(rules, held, strict=True)]),
        )
        self._per_head.rows.index_copy_(0, tag_rows, own)
        tables.thresholds.index_copy_(0, rows, thresholds)
        tables.options.index_copy_(0, rows, options)
        tables.least_rows.index_copy_(0, rows, least_rows)
        tables.places.index_copy_(0, rows, places)

    def _places(self, rule: HeadSinkRule, row: int) -> NDArray[np.int64]:
        """Where the sums of the rule's heads begin, int64 [layers, heads]; -1 for the others."""
        tables = self.parts.tables
        shape, max_len = tables.shape, tables.tags.tags.shape[2]
        places = np.full((shape.layers, shape.heads), -1, np.int64)
        for layer, heads in rule.sites:
            for head in heads:
                place = ((row - 1) * shape.layers + layer) * shape.heads + head
                places[layer, head] = place * max_len
        return places

    def _prompts(self, step: Step, prompts: Asking) -> PromptSinks:
        chunks = [a.chunk for a in prompts]
        starts = [step.starts[a.at] for a in prompts]
        rows = [np.arange(start, start + c.length) for start, c in zip(starts, chunks, strict=True)]
        off = [a.chunk.sequence.tag_row for a in prompts if a.rule.decode == "off"]
        controls, tags = self.parts.tables.controls, self.parts.tables.tags
        whole, (at, none, leaving) = attention_of(
            chunks,
            self.parts.tables,
            self.parts.upload,
            np.concatenate(rows),
            np.zeros(len(chunks), np.int32),
            np.array(off, np.int64),
        )
        batch = replace(
            whole,
            per_head_classes=False,
            controls=controls,
            tags=replace(tags, moved=torch.zeros_like(tags.moved)),
        )
        return PromptSinks(_layers(prompts), at, none, batch, self.tables, leaving)


def _is_prompt(asked: Asked[HeadSinkRule]) -> bool:
    """True for a prompt of several rows."""
    return asked.chunk.start == 0 and asked.chunk.length > 1


def _searches(asked: Asked[HeadSinkRule]) -> bool:
    """True for a single row whose classes are to be found; a prompt of one token is one too."""
    chunk = asked.chunk
    if chunk.start < chunk.sequence.prompt_length:
        return chunk.end == 1
    return _finds(chunk.sequence, asked.rule)


def _finds(sequence: Sequence, rule: HeadSinkRule) -> bool:
    """True if classes are found for generated rows, which nothing needs that are not edited."""
    assert sequence.plan is not None
    is_edited = sequence.plan.program_keys[Phase.GENERATED] is not None
    return is_edited and rule.decode in SEARCHING


def _layers(asked: Asking) -> frozenset[int]:
    return frozenset(layer for a in asked for layer, _ in a.rule.sites)


def _options(rule: HeadSinkRule) -> int:
    found = {
        HeadSinkOption.RELATIVE: rule.relative,
        HeadSinkOption.FIRST_FOUND: rule.spare == "first_found",
        HeadSinkOption.EXEMPT_INITIAL: rule.exempt_initial,
        HeadSinkOption.ROW_ALONE: rule.decode == "row",
    }
    return sum(int(option) for option, holds in found.items() if holds)
