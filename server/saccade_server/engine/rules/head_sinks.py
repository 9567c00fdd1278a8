"""Which rows of a step are measured for the sinks of single heads, and what is kept for them.

A plan with a HeadSinkRule computes its prompt in one step and its generated rows one at a time
(Needs.whole_prompt, Needs.single_rows), again after preemption too, so that every row sees the
classes that it is to see: they are written layer by layer while the row is computed
(models/head_sinks.py), into table rows that are the sequence's own. A prompt starts its sums anew.

Such a row cannot be one of a padded decode: what a captured graph computes must not depend on what
the host keeps for single sequences.
"""

from __future__ import annotations

from collections.abc import Sequence as Batch
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch

from saccade_interventions.rules import HeadSinkRule
from saccade_kernels.head_sinks import HeadSinkCriterion
from saccade_server.engine.batch import Step
from saccade_server.engine.rules.base import Asked, EngineParts, Looks, RuleHandler
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.wants import Wants
from saccade_server.models.head_sinks import AttentionSums, HeadSinkMeasure, Member


class HeadSinkHandler(RuleHandler[HeadSinkRule]):
    """Builds the measures of each step, and keeps the sums of the sequences in flight."""

    kind = HeadSinkRule

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        self._sums: dict[Sequence, AttentionSums] = {}
        self._heads: dict[Sequence, dict[int, torch.Tensor]] = {}

    def wants(self, rule: HeadSinkRule, decodes: bool) -> Wants:
        """Classes of single heads, if the row follows any."""
        return Wants.LAYERS if rule.decode != "off" or not decodes else Wants.NOTHING

    def look(self, step: Step, asked: Batch[Asked[HeadSinkRule]]) -> Looks | None:
        """One measure for the single rows of a step and one for its prompts, as far as any ask.

        Apart, so that what is measured of a row does not depend on what else is in the step.
        """
        asking = [a for a in asked if _asks(a)]
        decodes = step.attention.num_decodes
        groups = [a for a in asking if a.at < decodes], [a for a in asking if a.at >= decodes]
        found = tuple(self._measure(step, group) for group in groups if group)
        return Looks(measures=found) if found else None

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._sums.pop(sequence, None)
        self._heads.pop(sequence, None)

    def _measure(self, step: Step, group: Batch[Asked[HeadSinkRule]]) -> HeadSinkMeasure:
        members = [a.at for a in group]
        chunks = [a.chunk for a in group]
        rows = np.concatenate(
            [np.arange(step.starts[i], step.starts[i] + step.chunks[i].length) for i in members]
        )
        starts = [0, *accumulate(chunk.length for chunk in chunks)]
        whole, first = step.attention, members[0]
        at, of, ends, none = self.parts.upload(
            rows,
            np.array(members, dtype=np.int64),
            np.array(starts, dtype=np.int32),
            np.zeros(len(members), dtype=np.int32),
        )
        controls, tags = whole.tables()
        is_single = first < whole.num_decodes
        batch = replace(
            whole,
            slots=whole.slots.index_select(0, at),
            query_starts=ends,
            context_lens=whole.context_lens.index_select(0, of),
            page_table=whole.page_table.index_select(0, of),
            num_decodes=len(members) if is_single else 0,
            max_context=max(chunk.end for chunk in chunks) if is_single else 0,
            control_rows=whole.control_rows.index_select(0, at),
            tag_rows=whole.tag_rows.index_select(0, of),
            edits=whole.edits if is_single else (),
            prefills=()
            if is_single
            else tuple(whole.prefills[i - whole.num_decodes] for i in members),
            per_head_classes=False,
            controls=controls,
            tags=replace(tags, moved=torch.zeros_like(tags.moved)),
            derived={},
        )
        return HeadSinkMeasure(tuple(map(self._member, group)), at, none, batch)

    def _member(self, asked: Asked[HeadSinkRule]) -> Member:
        rule, chunk, sequence = asked.rule, asked.chunk, asked.chunk.sequence
        assert self.parts.tables.tags.per_head is not None
        if sequence not in self._heads:
            arrays = [np.array(heads, dtype=np.int64) for _, heads in rule.sites]
            layers = [layer for layer, _ in rule.sites]
            self._heads[sequence] = dict(zip(layers, self.parts.upload(*arrays), strict=True))
        return Member(
            heads=self._heads[sequence],
            table=self.parts.tables.tags.per_head.classes[sequence.per_head_row],
            start=chunk.start,
            end=chunk.end,
            criterion=HeadSinkCriterion(
                rule.threshold, rule.relative, rule.spare == "first_found", rule.exempt_initial
            ),
            least_rows=1 if chunk.start == 0 else rule.least_rows,
            sums=self._sums_of(asked),
        )

    def _sums_of(self, asked: Asked[HeadSinkRule]) -> AttentionSums | None:
        """None for a row that is measured alone."""
        chunk = asked.chunk
        sequence = chunk.sequence
        if chunk.start == 0:
            assert chunk.end == sequence.prompt_length, "a prompt in pieces has no sums of its own"
            room = sequence.prompt_length + sequence.request.sampling.max_tokens
            self._sums[sequence] = AttentionSums(min(room, self._max_len))
        if chunk.start > 0 and asked.rule.decode == "row":
            return None
        return self._sums[sequence]

    @property
    def _max_len(self) -> int:
        return self.parts.tables.tags.tags.shape[2]


def _asks(asked: Asked[HeadSinkRule]) -> bool:
    """True if the classes of the chunk's rows are yet to be found."""
    return asked.chunk.start == 0 or asked.rule.decode in ("running", "row")
