"""How sure the model is of a first token, and the plan that follows from it (ConfidenceRule).

The step that computes the last prompt row also gives the largest probability of its next token,
under the model's own distribution. The host reads it with the tokens, drops the token drawn there,
and lets the last row run again under the plan that is meant for that confidence.
"""

from __future__ import annotations

from collections.abc import Sequence as Batch
from dataclasses import replace

import numpy as np
import torch

from saccade_interventions.plan import Plan
from saccade_interventions.rules import ConfidenceRule
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.combined import Combined
from saccade_server.engine.rules.base import Asked, News, RuleHandler
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Download
from saccade_server.engine.wants import Wants


class ConfidenceHandler(RuleHandler[ConfidenceRule]):
    """Measures the first token's probability. A plan that was decided has no such rule any more."""

    kind = ConfidenceRule

    def wants(self, sequence: Sequence, rule: ConfidenceRule, decodes: bool) -> Wants:
        """The host decides about the plan."""
        return Wants.CHOICE

    def launched(
        self, rows: Combined, asked: Batch[Asked[ConfidenceRule]], look: None
    ) -> Confidences | None:
        """Queue the probabilities of the likeliest tokens."""
        deciding = [(a.chunk, a.rule, a.row) for a in asked if a.row >= 0]
        if not deciding:
            return None
        (at,) = self.parts.upload(np.array([row for _, _, row in deciding], dtype=np.int64))
        most = rows.logits.index_select(0, at).softmax(-1).amax(-1)
        return Confidences({chunk: rule for chunk, rule, _ in deciding}, most)


class Confidences(News):
    """What some sequences wait for, on its way to the host."""

    def __init__(self, rules: dict[Chunk, ConfidenceRule], values: torch.Tensor) -> None:
        self._rules = rules
        self._download = Download([values])
        self._found: dict[Chunk, float] = {}

    def note(self) -> None:
        """Read the probabilities; waits for the device."""
        (values,) = self._download.wait()
        self._found = dict(zip(self._rules, values.tolist(), strict=True))

    def again(self, chunk: Chunk) -> Plan | None:
        """The plan for the confidence that was found; counts which one it was."""
        if chunk not in self._found:
            return None
        sequence, rule = chunk.sequence, self._rules[chunk]
        assert sequence.plan is not None
        name, plan = decided(sequence.plan, self._found[chunk])
        sequence.count(rule.source, name)
        return plan


def decided(plan: Plan, confidence: float) -> tuple[str, Plan]:
    """What was found, "unsure" or "sure", and the plan of the run that counts."""
    rule = plan.rule(ConfidenceRule)
    assert rule is not None
    unsure = round(confidence, rule.decimals) < rule.threshold
    edits = rule.unsure if unsure else rule.sure
    left = tuple(other for other in plan.rules if other is not rule)
    return "unsure" if unsure else "sure", replace(plan, scores=plan.scores + edits, rules=left)
