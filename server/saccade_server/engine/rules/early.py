"""Distributions read from early layers, at the rows whose tokens are drawn (DoLa)."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Batch
from dataclasses import dataclass

import numpy as np
import torch

from saccade_interventions.rules import ContrastRule, EarlyExit
from saccade_kernels.distributions import divergence
from saccade_server.engine.batch import Step
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.rules.base import Asked, EngineParts
from saccade_server.engine.sequence import Sequence
from saccade_server.models.base import ServedModel
from saccade_server.models.exits import ExitProbe


@dataclass(frozen=True)
class Exits:
    """Residuals of early layers, and whose rows they are. A look of the contrast's handler."""

    model: ServedModel
    seen: Mapping[int, torch.Tensor]  # by layer, [rows, hidden_size]
    rows: Mapping[Sequence, int]
    invariant: bool  # a row's logits do not depend on the others
    probes: tuple[ExitProbe, ...] = ()

    @classmethod
    def of(cls, parts: EngineParts, step: Step, asked: Batch[Asked[ContrastRule]]) -> Exits | None:
        """A probe for the chunks of the step that draw by early layers; None if there are none."""
        found = [
            (a.chunk.sequence, step.starts[a.at] + a.chunk.length - 1, a.rule.early)
            for a in asked
            if a.rule.early is not None and a.row >= 0
        ]
        if not found:
            return None
        (at,) = parts.upload(np.array([row for _, row, _ in found], dtype=np.int64))
        layers = frozenset(layer for _, _, early in found for layer in early.layers)
        rows = {sequence: index for index, (sequence, _, _) in enumerate(found)}
        probe = ExitProbe(layers, at)
        return cls(parts.model, probe.seen, rows, parts.tables.invariant, (probe,))

    @classmethod
    def kept(
        cls, parts: EngineParts, outputs: StepOutputs, asked: Batch[Asked[ContrastRule]]
    ) -> Exits:
        """All residuals of a padded step."""
        rows = {a.chunk.sequence: a.at for a in asked}
        residuals = dict(enumerate(outputs.residuals))
        return cls(parts.model, residuals, rows, parts.tables.invariant)

    @property
    def measures(self) -> tuple[()]:
        """None: attention is not looked at."""
        return ()

    @property
    def tape(self) -> None:
        """None."""
        return

    def log_probs(self, rule: EarlyExit, rows: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        """log q of each row's own choice among the rule's layers.

        Args:
            rows: int64 [n], among those that are kept.
            log_p: the final distributions, [n, vocabulary].

        Returns:
            [n, vocabulary]; of equally different layers the lowest.
        """
        chosen, most = None, None
        for layer in sorted(rule.layers):
            hidden = self.seen[layer].index_select(0, rows)
            logits = self.model.early_logits(hidden, rule.norm, self.invariant)
            log_q = logits.log_softmax(-1)
            gap = divergence(log_p, log_q, rule.divergence)[:, None]
            if chosen is None or most is None:
                chosen, most = log_q, gap
                continue
            chosen = torch.where(gap > most, log_q, chosen)
            most = torch.maximum(gap, most)
        assert chosen is not None
        return chosen
