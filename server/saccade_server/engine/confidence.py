"""How sure the model is of a first token, and the plan that follows from it (ConfidenceRule).

The step that computes the last prompt row also gives the largest probability of its next token,
under the model's own distribution. The host reads it with the tokens, drops the token drawn there,
and lets the last row run again under the plan that is meant for that confidence.
"""

from __future__ import annotations

from collections.abc import Sequence as Batch
from dataclasses import dataclass, replace

import numpy as np
import torch

from saccade_interventions.plan import Plan
from saccade_interventions.rules import ConfidenceRule
from saccade_server.engine.scheduler import Chunk
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Download, Uploader


@dataclass(frozen=True)
class Confidences:
    """What some sequences wait for, on its way to the host."""

    _sequences: tuple[Sequence, ...]
    _values: Download

    @classmethod
    def of(cls, chunks: Batch[Chunk], logits: torch.Tensor, upload: Uploader) -> Confidences | None:
        """Queue it for the undecided among ``chunks``; None if there are none.

        Args:
            logits: one row for each chunk that draws, in order.
        """
        drawing = [chunk.sequence for chunk in chunks if chunk.draws]
        rows = [row for row, sequence in enumerate(drawing) if sequence.undecided]
        if not rows:
            return None
        (at,) = upload(np.array(rows, dtype=np.int64))
        most = logits.index_select(0, at).softmax(-1).amax(-1)
        return cls(tuple(drawing[row] for row in rows), Download([most]))

    def note(self) -> None:
        """Tell the sequences; waits for the device."""
        (values,) = self._values.wait()
        for sequence, value in zip(self._sequences, values.tolist(), strict=True):
            sequence.confidence = value


def decided(plan: Plan, confidence: float) -> tuple[str, Plan]:
    """What was found, "unsure" or "sure", and the plan of the run that counts."""
    rule = plan.rule(ConfidenceRule)
    assert rule is not None
    unsure = round(confidence, rule.decimals) < rule.threshold
    edits = rule.unsure if unsure else rule.sure
    chosen = replace(plan.without_rules(ConfidenceRule), scores=plan.scores + edits)
    return "unsure" if unsure else "sure", chosen
