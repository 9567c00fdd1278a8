"""Candidates of sequences that reject some: their pools, and what each key meant to them.

A step that draws for such sequences also leaves, for each, a pool: the likeliest tokens of what the
sampler would draw from, after logit bias, penalties, temperature, min-p, top-k and top-p. Their
saliency is computed in the same launch, by one more pass of the sequences' rows through the upper
layers (models/gradient.py), queued behind the step; the host reads all of it with the tokens and
decides (acceptance.py). The row's residual is kept by a probe where the step has probes. A padded
step, which may be a captured graph, has none, and the rows are carried up through the lower layers
once more, which costs less than taking the whole batch off the fast path.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Batch
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from msgspec import structs

from saccade_interventions.rules import SaliencyRule
from saccade_server.engine.batch import Step, pack
from saccade_server.engine.combined import Combined
from saccade_server.engine.request import TokenLogprobs
from saccade_server.engine.rules.acceptance import Acceptance, Candidate, descending, drawn
from saccade_server.engine.rules.base import Asked, EngineParts, News, RuleHandler
from saccade_server.engine.sampler import GREEDY_BELOW, Columns, Sample, keep_likely, uniforms
from saccade_server.engine.scheduler import Chunk
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Download
from saccade_server.engine.wants import Wants
from saccade_server.models.attention import ForwardStep
from saccade_server.models.exits import ExitProbe
from saccade_server.models.gradient import Judged, Rows, carry_up, judge

MOST_REPLICAS = 128
"""Rows times candidates of one pass, which bounds the memory of its logits."""

Group = tuple[Asked[SaliencyRule], ...]
"""Chunks whose candidates one pass judges: their rules agree in layers and candidates."""


@dataclass(frozen=True)
class ResidualLook:
    """Keeps the residuals that the passes behind a step start from."""

    groups: Mapping[Group, ExitProbe]
    measures: ClassVar[tuple[()]] = ()

    @property
    def probes(self) -> tuple[ExitProbe, ...]:
        """One a group."""
        return tuple(self.groups.values())


class SaliencyHandler(RuleHandler[SaliencyRule]):
    """Queues what a step's rejecting sequences need besides their logits, and decides for them."""

    kind = SaliencyRule

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        moved = parts.tables.tags.moved
        self._unread = torch.zeros_like(moved)  # an ordinary tensor, as gradients need
        self._states: dict[Sequence, Acceptance] = {}

    def wants(self, sequence: Sequence, rule: SaliencyRule, decodes: bool) -> Wants:
        """The host chooses, and a probe saves carrying the row up once more."""
        return Wants.CHOICE | Wants.PROBES

    def admit(self, sequence: Sequence, rule: SaliencyRule) -> None:
        """Remember nothing of its tokens yet."""
        self._states[sequence] = Acceptance(rule, sequence.ends)

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._states.pop(sequence, None)

    def rehearsal(self) -> SaliencyRule:
        """Every layer runs again with gradient, from the first token on."""
        return SaliencyRule(
            layers=(0,), candidates=5, draws=3, alpha=0.6, window=5, region="after_image"
        )

    def look(self, step: Step, asked: Batch[Asked[SaliencyRule]]) -> ResidualLook | None:
        """Residuals that enter the lowest layer of each group's rule."""
        found = {}
        for group in _groups(asked):
            if _keys(group[0]):
                rows = [step.starts[a.at] + a.chunk.length - 1 for a in group]
                (at,) = self.parts.upload(np.array(rows, dtype=np.int64))
                found[group] = ExitProbe(frozenset({min(group[0].rule.layers)}), at)
        return ResidualLook(found) if found else None

    def launched(
        self, rows: Combined, asked: Batch[Asked[SaliencyRule]], look: ResidualLook | None
    ) -> Pools | None:
        """Queue the pools of candidates."""
        parts = []
        for group in _groups(asked):
            (at,) = self.parts.upload(np.array([a.row for a in group], dtype=np.int64))
            found = self._pool(group, rows.select(at))
            probe = None if look is None else look.groups.get(group)
            judged = self._judge(group, probe, found[0])
            parts.append((group, Download([*found, judged.saliency, judged.evidence])))
        return Pools(parts, self._states) if parts else None

    def _pool(self, group: Group, rows: Combined) -> list[torch.Tensor]:
        """Tokens, their probabilities among what is left, own log-probabilities: [rows, K]."""
        params = [a.chunk.sequence.request.sampling for a in group]
        # Greedy requests filter, too, as at temperature 1.
        params = [
            structs.replace(p, temperature=1.0) if p.temperature < GREEDY_BELOW else p
            for p in params
        ]
        (values,) = self.parts.upload(Columns.table(params, [0.0] * len(params)))
        probs, index = keep_likely(rows.edited, Columns(*values[:, :, None]))
        count = min(group[0].rule.candidates, rows.logits.shape[-1])
        tokens = index[:, :count]
        logprobs = rows.logits.float().log_softmax(-1).gather(-1, tokens)
        return [tokens, probs[:, :count], logprobs]

    def _judge(self, group: Group, probe: ExitProbe | None, tokens: torch.Tensor) -> Judged:
        if not _keys(group[0]):  # nothing to be salient to
            nothing = torch.zeros(tokens.shape, device=tokens.device)
            return Judged(nothing, nothing > 0)
        chunks = [a.chunk for a in group]
        single = [structs.replace(c, start=c.end - 1, length=1) for c in chunks]
        positions = [self.parts.positions(c.sequence) for c in chunks]
        step = pack(single, positions, self.parts.tables, self.parts.upload, {})
        spans = np.array([_span(a) for a in group], dtype=np.int64)
        start, end = self.parts.upload(spans.T.copy())[0]
        attention, tags = step.attention, step.attention.tags
        if tags is not None:  # the step itself has counted these rows
            tags = replace(tags, moved=self._unread)
            attention = replace(attention, tags=tags, derived={})
        caches = (self.parts.keys, self.parts.values)
        forward = ForwardStep(attention, *caches, residuals=step.residuals)
        rows = Rows(forward, step.positions, start, end)
        model, layers = self.parts.model, group[0].rule.layers
        lowest = min(layers)
        if probe is not None:
            residual = probe.seen[lowest]
        else:
            residual = carry_up(model, model.embed(step.tokens), rows, lowest)
        return judge(model, residual, rows, layers, tokens)


class Pools(News):
    """The pools of a step's sequences, on their way to the host."""

    def __init__(
        self, parts: list[tuple[Group, Download]], states: Mapping[Sequence, Acceptance]
    ) -> None:
        self._parts = parts
        self._states = states
        self._found: dict[Chunk, tuple[SaliencyRule, list[Candidate], int]] = {}

    def note(self) -> None:
        """Read the pools, likeliest first; waits for the device."""
        for group, download in self._parts:
            columns = [part.tolist() for part in download.wait()]
            for asked, *lists in zip(group, *columns, strict=True):
                pool = [Candidate(*values) for values in zip(*lists, strict=True)]
                left = [item for item in pool if item.weight > 0]
                self._found[asked.chunk] = asked.rule, left, _keys(asked)

    def choose(self, chunk: Chunk, sample: Sample) -> Sample:
        """The token that the sequence accepts, in place of the sampler's own."""
        state = self._states.get(chunk.sequence)  # an aborted one has none
        if state is None or chunk not in self._found:
            return sample
        sequence, (rule, pool, keys) = chunk.sequence, self._found[chunk]
        params = sequence.request.sampling
        if params.temperature < GREEDY_BELOW:
            order = descending(pool)
        else:
            order = drawn(pool, uniforms(params.seed, chunk.end - sequence.prompt_length))
        choice = state.choose(pool, order, keys)
        counted = (("draws", choice.draws), ("rejections", choice.rejections))
        for name, times in (*counted, ("fallbacks", int(choice.fallback))):
            if times:
                sequence.count(rule.source, name, times)
        token, logprobs = choice.candidate.token, sample.logprobs
        if logprobs is not None:
            logprobs = TokenLogprobs(token, choice.candidate.logprob, logprobs.top)
        return Sample(token, logprobs)


def _groups(asked: Batch[Asked[SaliencyRule]]) -> list[Group]:
    """The chunks that draw a token to keep, by what one pass can do together."""
    groups: dict[object, list[Asked[SaliencyRule]]] = {}
    for a in asked:
        if a.row >= 0 and not a.chunk.is_tentative:
            key = (a.rule.layers, a.rule.candidates, _keys(a) > 0)
            groups.setdefault(key, []).append(a)
    parts = []
    for members in groups.values():
        size = max(MOST_REPLICAS // members[0].rule.candidates, 1)
        parts += [tuple(members[at : at + size]) for at in range(0, len(members), size)]
    return parts


def _span(asked: Asked[SaliencyRule]) -> tuple[int, int]:
    """J, the keys that matter, of the chunk's last row."""
    rule, chunk, plan = asked.rule, asked.chunk, asked.chunk.sequence.plan
    assert plan is not None
    start = plan.prompt_length
    if rule.region == "after_image" and plan.question_start:
        start = plan.question_start
    return start, chunk.end if rule.with_self else chunk.end - 1


def _keys(asked: Asked[SaliencyRule]) -> int:
    """Size of J."""
    start, end = _span(asked)
    return max(end - start, 0)
