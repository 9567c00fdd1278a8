"""The logits that a step's tokens are drawn from: one row for each token."""

from __future__ import annotations

from collections.abc import Sequence as Batch
from dataclasses import dataclass

import torch

from saccade_server.engine.chunk import Chunk
from saccade_server.engine.masks import Masks
from saccade_server.engine.penalties import edit_logits
from saccade_server.engine.transfer import Uploader


@dataclass(frozen=True)
class Combined:
    """Rows of logits; -inf where a rule excludes a token."""

    logits: torch.Tensor  # [rows, vocabulary], before the requests' changes of single logits
    edited: torch.Tensor  # behind them; ``logits`` itself if no request of the step has any
    usable: torch.Tensor  # bool [rows]: all logits that went into the row were finite
    tokens: torch.Tensor | None = None  # int64 [rows]: which were drawn, once they are

    @classmethod
    def of(
        cls, logits: torch.Tensor, sampling: Batch[Chunk], upload: Uploader, masks: Masks
    ) -> Combined:
        """A row for each chunk that samples, a branch's changed and held as its leader's are.

        Args:
            logits: [chunks, vocabulary], float32 or wider; not modified.
        """
        leaders = [chunk.sequence.group[0] for chunk in sampling]
        edited = edit_logits(logits, leaders, upload, masks)
        return cls(logits, edited, torch.isfinite(logits).all(-1))

    def select(self, rows: torch.Tensor) -> Combined:
        """A copy of these rows."""
        logits, usable = self.logits.index_select(0, rows), self.usable.index_select(0, rows)
        is_edited = self.edited is not self.logits
        edited = self.edited.index_select(0, rows) if is_edited else logits
        return Combined(logits, edited, usable)
