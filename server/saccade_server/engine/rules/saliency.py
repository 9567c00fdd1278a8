"""Sequences that reject candidates: what each key meant to each candidate, beside the pools.

A step that draws for such sequences also leaves a pool of candidates for each (candidates.py) and
their saliency, computed in the same launch by going back through the layers of the sequences' rows
(models/gradient.py). What the layers computed for a row lies on the step's tape (models/tape.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from saccade_interventions.plan import Plan
from saccade_interventions.rules import ContrastRule, SaliencyRule
from saccade_server.engine.batch import Step, pack
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.combined import Combined
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.rules.acceptance import Acceptance
from saccade_server.engine.rules.base import Asked, EngineParts, RuleHandler
from saccade_server.engine.rules.candidates import Pools, keys_of, pool_of, pool_params, span_of
from saccade_server.engine.rules.saliency_stages import Passes, saliency_stages
from saccade_server.engine.sampler import Columns
from saccade_server.engine.seats import Roster
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Stage
from saccade_server.engine.transfer import Download
from saccade_server.engine.wants import Wants
from saccade_server.models.attention import ForwardStep
from saccade_server.models.gradient import Judged, Region, Rows, judge
from saccade_server.models.tape import FixedTape, RowsTape, wanted_of

MOST_REPLICAS = 128
"""Rows times candidates of one pass, which bounds the memory of its gradients."""

Group = tuple[Asked[SaliencyRule], ...]
"""Chunks whose candidates one pass judges."""


@dataclass(frozen=True)
class TapeLook:
    """A step's tape, and which of its rows belong to which chunks."""

    tape: RowsTape | FixedTape
    rows: Mapping[Chunk, int]
    probes: ClassVar[tuple[()]] = ()
    measures: ClassVar[tuple[()]] = ()


class SaliencyHandler(RuleHandler[SaliencyRule]):
    """Queues what a step's rejecting sequences need besides their logits, and decides for them."""

    kind = SaliencyRule

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        self._wanted = wanted_of(parts.model.decoder.spec)
        self._passes: Passes | None = None
        self._states: dict[Sequence, Acceptance] = {}

    def wants(self, sequence: Sequence, rule: SaliencyRule, decodes: bool) -> Wants:
        """The host chooses; a step that is not padded keeps a tape, a padded one has stages."""
        return Wants.NOTHING if self.parts.pads else Wants.CHOICE | Wants.PROBES

    def stages(self, outputs: StepOutputs) -> Batch[Stage]:
        """What goes back through the layers behind a padded step."""
        self._passes = Passes(self.parts, outputs)
        return saliency_stages(self._passes)

    def draws_unmasked(self, roster: Roster) -> bool:
        """Candidates' own probabilities: behind stages, only of rows that these judge."""
        plans = [sequence.plan for sequence in roster.holding]
        judged = [plan for plan in plans if plan is not None and plan.rule(SaliencyRule)]
        if not judged or self._passes is None:
            return False
        return self._passes.asked(roster) is None or any(map(combines, judged))

    def admit(self, sequence: Sequence, rule: SaliencyRule) -> None:
        """Remember nothing of its tokens yet."""
        self._states[sequence] = Acceptance(rule, sequence.ends)

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._states.pop(sequence, None)
        if self._passes is not None:
            self._passes.forget(sequence)

    def rehearsal(self) -> SaliencyRule:
        """Every layer is gone back through, from the first token on."""
        return SaliencyRule(
            layers=(0,), candidates=5, draws=3, alpha=0.6, window=5, region="after_image"
        )

    def look(self, step: Step, asked: Batch[Asked[SaliencyRule]]) -> TapeLook | None:
        """A tape of the rows that are gone back through, from the lowest layer that counts."""
        found = [a for a in _judged(asked) if keys_of(a)]
        if not found:
            return None
        rows = [step.starts[a.at] + a.chunk.length - 1 for a in found]
        (at,) = self.parts.upload(np.array(rows, np.int64))
        tape = RowsTape(at, _lowest(found), self._wanted)
        return TapeLook(tape, {a.chunk: row for row, a in enumerate(found)})

    def launched(
        self, rows: Combined, asked: Batch[Asked[SaliencyRule]], look: TapeLook | None
    ) -> Pools | None:
        """Queue the pools of candidates."""
        if look is None and self._passes is not None:
            look = TapeLook(self._passes.outputs.tape, {a.chunk: a.at for a in asked})
        parts: list[tuple[Batch[Asked[SaliencyRule]], Download]] = []
        for group in _groups(asked, 1 if self.parts.tables.invariant else MOST_REPLICAS):
            (at,) = self.parts.upload(np.array([a.row for a in group], dtype=np.int64))
            found = self._pool(group, rows.select(at))
            judged = self._judge(group, look, found[0])
            parts.append((group, Download([*found, judged.saliency, judged.evidence])))
        return Pools(parts, self._states) if parts else None

    def staged(self, asked: Batch[Asked[SaliencyRule]]) -> Pools | None:
        """Take what stages have found; queue here what they could not."""
        assert self._passes is not None, "a padded step has stages"
        drawing = [a for a in asked if a.row >= 0]
        judging = self._passes.take([a.chunk.sequence for a in drawing])
        if judging is None:
            logits = self._passes.outputs.logits
            usable = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
            at = [a._replace(row=a.at) for a in drawing]
            return self.launched(Combined(logits, logits, usable), at, None)
        assert [a.at for a in drawing] == judging.rows.tolist(), "stages know who is judged"
        found = self._passes.found
        download = Download([found if found.is_cuda else found.clone()])
        return Pools([(drawing, download)], self._states, self._passes.fields)

    def _pool(self, group: Group, rows: Combined) -> list[torch.Tensor]:
        params = [pool_params(a.chunk.sequence.request.sampling) for a in group]
        (values,) = self.parts.upload(Columns.table(params, [0.0] * len(params)))
        count = max(a.rule.candidates for a in group)
        return pool_of(rows.edited, rows.logits, Columns(*values[:, :, None]), count)

    def _judge(self, group: Group, look: TapeLook | None, tokens: torch.Tensor) -> Judged:
        if not keys_of(group[0]):  # nothing to be salient to
            nothing = torch.zeros(tokens.shape, device=tokens.device)
            return Judged(nothing, nothing > 0)
        assert look is not None, "a step with such rows has a tape"
        parts, chunks = self.parts, [a.chunk for a in group]
        single = [structs.replace(c, start=c.end - 1, length=1) for c in chunks]
        positions = [parts.positions(chunk.sequence) for chunk in chunks]
        step = pack(single, positions, parts.tables, parts.upload, {})
        forward = ForwardStep(step.attention, parts.keys, parts.values, residuals=step.residuals)
        at = np.array([look.rows[chunk] for chunk in chunks], np.int64)
        spans = np.array([span_of(a) for a in group], np.int64)
        place, (start, end), counts = parts.upload(at, spans.T.copy(), _counts(group, parts))
        rows = Rows(forward, step.positions, look.tape, place)
        region = Region(start, end, counts.bool())
        return judge(parts.model, rows, region, _lowest(group), tokens)


def combines(plan: Plan) -> bool:
    """True if its tokens are drawn from two distributions, of which stages leave one."""
    return plan.rule(ContrastRule) is not None


def _judged(asked: Batch[Asked[SaliencyRule]]) -> list[Asked[SaliencyRule]]:
    """The chunks that draw a token to keep."""
    return [a for a in asked if a.row >= 0 and not a.chunk.is_tentative]


def _groups(asked: Batch[Asked[SaliencyRule]], replicas: int) -> list[Group]:
    """The chunks that draw a token to keep, by what one pass can do together.

    Args:
        replicas: rows times candidates of a pass, at most; a row is never divided.
    """
    drawing = _judged(asked)
    parts: list[Group] = []
    for members in ([a for a in drawing if keys_of(a)], [a for a in drawing if not keys_of(a)]):
        most = max((a.rule.candidates for a in members), default=1)
        size = max(replicas // most, 1)
        parts += [tuple(members[at : at + size]) for at in range(0, len(members), size)]
    return parts


def _lowest(asked: Batch[Asked[SaliencyRule]]) -> int:
    """The lowest layer that counts for some of them."""
    return min(min(a.rule.layers) for a in asked)


def _counts(asked: Batch[Asked[SaliencyRule]], parts: EngineParts) -> NDArray[np.uint8]:
    """Whose saliency counts, [chunks, layers]."""
    counts = np.zeros((len(asked), parts.model.layers), np.uint8)
    for row, a in enumerate(asked):
        counts[row, list(a.rule.layers)] = 1
    return counts
