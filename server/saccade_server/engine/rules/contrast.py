"""Draw tokens from two distributions (ContrastRule): combine the logits of a step's rows.

The rule says d = own log p - other log q, with p of the leader and q of its branch, or of an early
layer. A row comes out twice: as the model and the rule have it, for log-probabilities, and with
what the request changes in single logits (bias, penalties, ends held back), to draw from.
Temperature and filters work with d as they would with logits, so excluded tokens stay excluded.

Changes of single logits belong on raw logits, before the softmax: log p is near 0 for the likeliest
token, where a factor has no hold. Every view of the prompt gets them, the leader and its branch
alike, as if each were an answer of its own; the same tokens count as seen in both. A factor thus
acts as it does without contrast, and what is added counts own - other times, which is once in VCD
and PAI. An early layer is no view but what the final one is measured against: its logits, and its
choice, stay the model's own, and what is added to p counts once there too. The cutoff goes by the
changed p: a forced token cannot be excluded, a banned one comes back in no row, and an end that is
held back leaves the likeliest of the others. What a grammar does not allow is banned in this sense.
(VCD's and DoLa's code apply them to d behind the cutoff, PAI's to p alone: they act there, but
cannot force what the cutoff excludes.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Batch
from dataclasses import dataclass

import numpy as np
import torch

from saccade_interventions.rules import ContrastRule, EarlyExit
from saccade_kernels.distributions import contrast
from saccade_server.engine.batch import Step
from saccade_server.engine.combined import Combined
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.rules.base import Asked, RuleHandler, Views
from saccade_server.engine.rules.contrast_stage import ContrastStage, numbers_of
from saccade_server.engine.rules.early import Exits
from saccade_server.engine.rules.early_stage import EarlyStage
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Stage
from saccade_server.engine.wants import Wants


class ContrastHandler(RuleHandler[ContrastRule]):
    """Combines rows of logits, and keeps the residuals of early layers for that."""

    kind = ContrastRule

    def wants(self, sequence: Sequence, rule: ContrastRule, decodes: bool) -> Wants:
        """A probe, where the second distribution is that of an early layer."""
        return Wants.COMBINATION | (Wants.NOTHING if rule.early is None else Wants.PROBES)

    def stages(self, outputs: StepOutputs) -> Batch[Stage]:
        """One for each kind of second distribution."""
        parts = self.parts
        early = EarlyStage(parts.model, outputs, parts.tables.invariant)
        return early, ContrastStage(outputs)

    def look(self, step: Step, asked: Batch[Asked[ContrastRule]]) -> Exits | None:
        """What keeps the residuals of early layers."""
        return Exits.of(self.parts, step, asked)

    def kept(self, outputs: StepOutputs, asked: Batch[Asked[ContrastRule]]) -> Exits:
        """The residuals that a padded step keeps anyway."""
        return Exits.kept(self.parts, outputs, asked)

    def combine(
        self,
        rows: Combined,
        views: Views,
        asked: Batch[Asked[ContrastRule]],
        look: Exits | None,
    ) -> None:
        """Replace the rows of leaders by what their rules make of two."""
        groups: dict[EarlyExit | None, list[_Pair]] = defaultdict(list)
        for a in asked:
            groups[a.rule.early].append(_pair(a, views, look))
        for early, pairs in groups.items():
            self._apply(rows, pairs, early, views.rows, look)

    def accepted(self, sequence: Sequence, rule: ContrastRule) -> None:
        """Count the token."""
        sequence.count(rule.source, "contrasted")

    def _apply(
        self,
        found: Combined,
        pairs: list[_Pair],
        early: EarlyExit | None,
        views: Combined,
        exits: Exits | None,
    ) -> None:
        """Replace the rows of leaders whose rules have the same kind of second distribution."""
        places = np.array([(pair.row, pair.own, pair.other) for pair in pairs], dtype=np.int64)
        numbers = np.array([numbers_of(pair.rule) for pair in pairs])
        places_there, numbers_there = self.parts.upload(places.T.copy(), numbers.T.copy())
        row, own, other = places_there
        log_p = views.logits.index_select(0, own).log_softmax(-1)
        if early is None:
            log_q = views.logits.index_select(0, other).log_softmax(-1)
        else:
            assert exits is not None
            log_q = exits.log_probs(early, other, log_p)
        rules = numbers_there.to(log_p.dtype)[:, :, None]
        usable = found.usable.index_select(0, row) & torch.isfinite(log_q).all(-1)
        found.logits.index_copy_(0, row, contrast(log_p, log_q, *rules))
        found.usable.index_copy_(0, row, usable)
        if found.edited is not found.logits:
            log_p = views.edited.index_select(0, own).log_softmax(-1)
            if early is None:
                log_q = views.edited.index_select(0, other).log_softmax(-1)
            found.edited.index_copy_(0, row, contrast(log_p, log_q, *rules))


@dataclass(frozen=True)
class _Pair:
    """The rule of one leader: its row among those drawn, and where p and q are."""

    row: int
    own: int
    other: int  # a row of logits, or a row of the exits if the rule has early layers
    rule: ContrastRule


def _pair(asked: Asked[ContrastRule], views: Views, exits: Exits | None) -> _Pair:
    leader, rule = asked.chunk.sequence, asked.rule
    if rule.early is not None:
        assert exits is not None
        other = exits.rows[leader]
    else:
        other = views.places[next(s for s in leader.branches if not s.measures)]
    return _Pair(asked.row, views.places[leader], other, rule)
