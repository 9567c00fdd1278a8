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

from collections.abc import Callable
from collections.abc import Sequence as Batch
from dataclasses import dataclass, replace

import numpy as np
import torch
from msgspec import structs

from saccade_interventions.rules import SaliencyRule
from saccade_server.engine.acceptance import Candidate, descending, drawn
from saccade_server.engine.batch import PromptPositions, Step, pack
from saccade_server.engine.combined import Combined
from saccade_server.engine.request import TokenLogprobs
from saccade_server.engine.sampler import GREEDY_BELOW, Columns, Sample, keep_likely, uniforms
from saccade_server.engine.scheduler import Chunk
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.tables import DeviceTables
from saccade_server.engine.transfer import Download, Uploader
from saccade_server.models.attention import ForwardStep
from saccade_server.models.base import ServedModel
from saccade_server.models.exits import ExitProbe
from saccade_server.models.gradient import Judged, Rows, carry_up, judge

PositionsOf = Callable[[Sequence], PromptPositions]

MOST_REPLICAS = 128
"""Rows times candidates of one pass, which bounds the memory of its logits."""


@dataclass(frozen=True)
class Pools:
    """The pools of a step's sequences, on their way to the host."""

    _parts: tuple[tuple[tuple[Chunk, ...], Download], ...]

    def wait(self) -> dict[Sequence, list[Candidate]]:
        """Likeliest first; waits for the device."""
        found: dict[Sequence, list[Candidate]] = {}
        for chunks, download in self._parts:
            columns = [part.tolist() for part in download.wait()]
            for chunk, *lists in zip(chunks, *columns, strict=True):
                pool = [Candidate(*values) for values in zip(*lists, strict=True)]
                found[chunk.sequence] = [item for item in pool if item.weight > 0]
        return found


class CandidateJudge:
    """Queues what a step's rejecting sequences need besides their logits."""

    def __init__(
        self,
        model: ServedModel,
        caches: tuple[Batch[torch.Tensor], Batch[torch.Tensor]],
        tables: DeviceTables,
        upload: Uploader,
    ) -> None:
        self._model = model
        self._caches = caches
        self._tables = tables
        self._upload = upload
        self._unread = torch.zeros_like(tables.tags.moved)  # an ordinary tensor, as gradients need
        self._probes: dict[tuple[Chunk, ...], ExitProbe] = {}

    def reset(self) -> None:
        """Forget the probes of the step before; if it failed, nobody has taken them."""
        self._probes = {}

    def probes(self, step: Step) -> list[ExitProbe]:
        """What keeps the residuals that the passes behind this step start from."""
        last = dict(zip(step.chunks, step.starts, strict=True))
        for part in _parts(step.chunks):
            rule = _rule(part[0])
            if _keys(part[0], rule):
                rows = np.array([last[c] + c.length - 1 for c in part], dtype=np.int64)
                (at,) = self._upload(rows)
                self._probes[part] = ExitProbe(frozenset({min(rule.layers)}), at)
        return list(self._probes.values())

    def launch(self, chunks: Batch[Chunk], positions: PositionsOf, rows: Combined) -> Pools | None:
        """Queue the pools of ``chunks``; None if none of them rejects.

        Args:
            positions: of a sequence's prompt.
            rows: of logits, one for each chunk that draws, in order.
        """
        place = {chunk: row for row, chunk in enumerate(c for c in chunks if c.draws)}
        parts = []
        for part in _parts(chunks):
            (at,) = self._upload(np.array([place[chunk] for chunk in part], dtype=np.int64))
            found = self._pool(part, rows.select(at))
            judged = self._judge(part, [positions(chunk.sequence) for chunk in part], found[0])
            parts.append((part, Download([*found, judged.saliency, judged.evidence])))
        return Pools(tuple(parts)) if parts else None

    def _pool(self, part: Batch[Chunk], rows: Combined) -> list[torch.Tensor]:
        """Tokens, their probabilities among what is left, own log-probabilities: [rows, K]."""
        params = [chunk.sequence.request.sampling for chunk in part]
        # Greedy requests filter, too, as at temperature 1.
        params = [
            structs.replace(p, temperature=1.0) if p.temperature < GREEDY_BELOW else p
            for p in params
        ]
        (values,) = self._upload(Columns.table(params, [0.0] * len(params)))
        probs, index = keep_likely(rows.edited, Columns(*values[:, :, None]))
        count = min(_rule(part[0]).candidates, rows.logits.shape[-1])
        tokens = index[:, :count]
        logprobs = rows.logits.float().log_softmax(-1).gather(-1, tokens)
        return [tokens, probs[:, :count], logprobs]

    def _judge(
        self, part: tuple[Chunk, ...], positions: Batch[PromptPositions], tokens: torch.Tensor
    ) -> Judged:
        rule = _rule(part[0])
        if not _keys(part[0], rule):  # nothing to be salient to
            nothing = torch.zeros(tokens.shape, device=tokens.device)
            return Judged(nothing, nothing > 0)
        single = [structs.replace(c, start=c.end - 1, length=1) for c in part]
        step = pack(single, positions, self._tables, self._upload, {})
        spans = np.array([_span(chunk, _rule(chunk)) for chunk in part], dtype=np.int64)
        start, end = self._upload(spans.T.copy())[0]
        attention, tags = step.attention, step.attention.tags
        if tags is not None:  # the step itself has counted these rows
            tags = replace(tags, moved=self._unread)
            attention = replace(attention, tags=tags, derived={})
        forward = ForwardStep(attention, *self._caches, residuals=step.residuals)
        rows = Rows(forward, step.positions, start, end)
        probe = self._probes.pop(part, None)
        lowest = min(rule.layers)
        if probe is not None:
            residual = probe.seen[lowest]
        else:
            residual = carry_up(self._model, self._model.embed(step.tokens), rows, lowest)
        return judge(self._model, residual, rows, rule.layers, tokens)


def decide(chunk: Chunk, sample: Sample, pool: list[Candidate]) -> Sample:
    """The token that a sequence accepts, in place of the sampler's own."""
    sequence, rule = chunk.sequence, _rule(chunk)
    state, params = sequence.acceptance, sequence.request.sampling
    assert state is not None
    if params.temperature < GREEDY_BELOW:
        order = descending(pool)
    else:
        order = drawn(pool, uniforms(params.seed, chunk.end - sequence.prompt_length))
    choice = state.choose(pool, order, _keys(chunk, rule))
    counted = (("draws", choice.draws), ("rejections", choice.rejections))
    for name, times in (*counted, ("fallbacks", int(choice.fallback))):
        if times:
            sequence.count(rule.source, name, times)
    token, logprobs = choice.candidate.token, sample.logprobs
    if logprobs is not None:
        logprobs = TokenLogprobs(token, choice.candidate.logprob, logprobs.top)
    return Sample(token, logprobs)


def _parts(chunks: Batch[Chunk]) -> list[tuple[Chunk, ...]]:
    """The chunks whose sequences reject, by what one pass can do together."""
    groups: dict[object, list[Chunk]] = {}
    for chunk in chunks:
        if chunk.draws and chunk.sequence.judged:
            rule = _rule(chunk)
            key = (rule.layers, rule.candidates, _keys(chunk, rule) > 0)
            groups.setdefault(key, []).append(chunk)
    parts = []
    for members in groups.values():
        size = max(MOST_REPLICAS // _rule(members[0]).candidates, 1)
        parts += [tuple(members[at : at + size]) for at in range(0, len(members), size)]
    return parts


def _rule(chunk: Chunk) -> SaliencyRule:
    plan = chunk.sequence.plan
    assert plan is not None
    rule = plan.rule(SaliencyRule)
    assert rule is not None
    return rule


def _span(chunk: Chunk, rule: SaliencyRule) -> tuple[int, int]:
    """J, the keys that matter, of the chunk's last row."""
    plan = chunk.sequence.plan
    assert plan is not None
    start = plan.prompt_length
    if rule.region == "after_image" and plan.question_start:
        start = plan.question_start
    return start, chunk.end if rule.with_self else chunk.end - 1


def _keys(chunk: Chunk, rule: SaliencyRule) -> int:
    """Size of J."""
    start, end = _span(chunk, rule)
    return max(end - start, 0)
