"""Distributions read from early layers, at the rows whose tokens are drawn (DoLa)."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Batch
from dataclasses import dataclass

import numpy as np
import torch

from saccade_interventions.rules import ContrastRule, EarlyExit
from saccade_server.engine.batch import Step
from saccade_server.engine.rules.base import Asked
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Uploader
from saccade_server.models.base import ServedModel
from saccade_server.models.exits import ExitProbe


@dataclass(frozen=True)
class Exits:
    """What a step's probe keeps, and whose rows it keeps. A look of the contrast's handler."""

    model: ServedModel
    probe: ExitProbe
    rows: Mapping[Sequence, int]

    @classmethod
    def of(
        cls, model: ServedModel, step: Step, asked: Batch[Asked[ContrastRule]], upload: Uploader
    ) -> Exits | None:
        """A probe for the chunks of the step that draw by early layers; None if there are none."""
        found = [
            (a.chunk.sequence, step.starts[a.at] + a.chunk.length - 1, a.rule.early)
            for a in asked
            if a.rule.early is not None and a.row >= 0
        ]
        if not found:
            return None
        (at,) = upload(np.array([row for _, row, _ in found], dtype=np.int64))
        layers = frozenset(layer for _, _, early in found for layer in early.layers)
        rows = {sequence: index for index, (sequence, _, _) in enumerate(found)}
        return cls(model, ExitProbe(layers, at), rows)

    @property
    def probes(self) -> tuple[ExitProbe, ...]:
        """The probe."""
        return (self.probe,)

    @property
    def measures(self) -> tuple[()]:
        """None: attention is not looked at."""
        return ()

    def log_probs(self, rule: EarlyExit, rows: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        """log q of each row's own choice among the rule's layers.

        Args:
            rows: int64 [n], among those the probe keeps.
            log_p: the final distributions, [n, vocabulary].

        Returns:
            [n, vocabulary]; of equally different layers the lowest.
        """
        chosen, most = None, None
        for layer in sorted(rule.layers):
            hidden = self.probe.seen[layer].index_select(0, rows)
            log_q = self.model.early_logits(hidden, rule.norm).log_softmax(-1)
            gap = divergence(log_p, log_q, rule.divergence)[:, None]
            if chosen is None or most is None:
                chosen, most = log_q, gap
                continue
            chosen = torch.where(gap > most, log_q, chosen)
            most = torch.maximum(gap, most)
        assert chosen is not None
        return chosen


def divergence(log_p: torch.Tensor, log_q: torch.Tensor, kind: str) -> torch.Tensor:
    """How far two distributions are apart, averaged over the vocabulary: [rows].

    With M = (p + q) / 2: "dola" is (KL(M||p) + KL(M||q)) / 2, what DoLa's code computes; "jsd" is
    the Jensen-Shannon divergence, (KL(p||M) + KL(q||M)) / 2.
    """
    log_m = torch.logaddexp(log_p, log_q) - float(np.log(2))
    if kind == "jsd":
        terms = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    else:
        terms = log_m.exp() * (2 * log_m - log_p - log_q)
    return terms.mean(-1) / 2
