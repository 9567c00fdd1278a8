"""Contrast with a branch whose weight grows from token to token (GrowingContrastRule).

The host knows how many tokens an answer has, even where it does not know them yet, so a row's
weight goes up with its other numbers. Whether the model is certain, and the row left as it is, is
found on the device, and comes back with the tokens, to be counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Batch

import numpy as np
import torch

from saccade_interventions.rules import GrowingContrastRule
from saccade_kernels.distributions import contrast
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.combined import Combined
from saccade_server.engine.rules.base import Asked, EngineParts, News, RuleHandler, Views
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Download
from saccade_server.engine.wants import Wants


class GrowingContrastHandler(RuleHandler[GrowingContrastRule]):
    """Combines rows of logits."""

    kind = GrowingContrastRule

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        self._contrasted: dict[Sequence, bool] = {}  # its last token that has come
        self._acted: torch.Tensor | None = None  # of the step that is being launched

    def wants(self, sequence: Sequence, rule: GrowingContrastRule, decodes: bool) -> Wants:
        """Rows are combined behind the step, and counted."""
        return Wants.CHOICE

    def admit(self, sequence: Sequence, rule: GrowingContrastRule) -> None:
        """Make a place for what its tokens are drawn from."""
        self._contrasted[sequence] = False

    def combine(
        self, rows: Combined, views: Views, asked: Batch[Asked[GrowingContrastRule]], look: None
    ) -> None:
        """Replace the rows of leaders where the model is not certain."""
        places = np.array([_places(a, views) for a in asked], np.int64)
        numbers = np.array([_numbers(a) for a in asked])
        row, own, other, *values = self.parts.upload(*places.T.copy(), *numbers.T.copy())
        weight, log_certain, log_cutoff = (n.to(rows.logits.dtype)[:, None] for n in values)
        log_p = views.rows.logits.index_select(0, own).log_softmax(-1)
        acted = (weight > 0) & (log_p.amax(-1, keepdim=True) < log_certain)
        kinds = [(rows.logits, views.rows.logits)]
        if rows.edited is not rows.logits:
            kinds.append((rows.edited, views.rows.edited))
        for drawn, seen in kinds:
            log_p, log_q = (seen.index_select(0, at).log_softmax(-1) for at in (own, other))
            combined = contrast(log_p, log_q, 1 + weight, weight, log_cutoff)
            drawn.index_copy_(0, row, torch.where(acted, combined, drawn.index_select(0, row)))
        usable = rows.usable.index_select(0, row) & views.rows.usable.index_select(0, other)
        rows.usable.index_copy_(0, row, usable)
        self._acted = acted[:, 0]

    def launched(
        self, rows: Combined, asked: Batch[Asked[GrowingContrastRule]], look: None
    ) -> Contrasted | None:
        """Queue which rows were combined."""
        acted, self._acted = self._acted, None
        drawn = [a.chunk for a in asked if a.row >= 0]
        if acted is None or not drawn:  # a step that failed may have left what it combined
            return None
        return Contrasted(drawn, acted, self._contrasted)

    def accepted(self, sequence: Sequence, rule: GrowingContrastRule) -> None:
        """Count what the token was drawn from, and whether the weight had reached its limit."""
        contrasted = self._contrasted[sequence]
        sequence.count(rule.source, "contrasted" if contrasted else "plain")
        if contrasted and rule.weight(sequence.generated - 1) == rule.most_weight:
            sequence.count(rule.source, "limited")

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._contrasted.pop(sequence, None)


class Contrasted(News):
    """Which rows of a step were combined, on its way to the host."""

    def __init__(
        self, chunks: Batch[Chunk], acted: torch.Tensor, found: dict[Sequence, bool]
    ) -> None:
        self._chunks = chunks
        self._download = Download([acted])
        self._found = found

    def note(self) -> None:
        """Read it; waits for the device."""
        (acted,) = self._download.wait()
        for chunk, contrasted in zip(self._chunks, acted.tolist(), strict=True):
            if chunk.sequence in self._found:  # it has not ended meanwhile
                self._found[chunk.sequence] = contrasted


def _places(asked: Asked[GrowingContrastRule], views: Views) -> tuple[int, int, int]:
    """The row that is drawn from, and those of p and q among all views."""
    leader = asked.chunk.sequence
    branch = next(s for s in leader.branches if not s.measures)
    return asked.row, views.places[leader], views.places[branch]


def _numbers(asked: Asked[GrowingContrastRule]) -> tuple[float, float, float]:
    """Weight, and the logs of the other two numbers."""
    rule, chunk = asked.rule, asked.chunk
    weight = rule.weight(chunk.end - chunk.sequence.prompt_length)
    return weight, _log(rule.certain), _log(rule.cutoff)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
