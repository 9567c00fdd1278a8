"""Keeping the residual of a few rows on its way through the layers, to read logits from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from saccade_kernels.residual import SiteKind


@dataclass(frozen=True)
class ExitProbe:
    """Keeps the residual entering some layers at some of a step's rows."""

    kind: ClassVar[SiteKind] = SiteKind.RESIDUAL
    layers: frozenset[int]
    rows: torch.Tensor  # int64 [n]
    seen: dict[int, torch.Tensor] = field(default_factory=dict)  # by layer, [n, hidden_size]

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        """Keep this layer's rows."""
        self.seen[layer] = hidden.index_select(0, self.rows)
