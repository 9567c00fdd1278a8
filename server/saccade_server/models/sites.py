"""Places in the decoder where a step's tables act and its probes look.

    residual           before a layer, and behind the last: stream edits, then probes
    head outputs       between attention and its output projection: measures (attention.py)
    attention output   what attention adds to the residual
    MLP output         what the MLP adds to it

Nothing acts at the last two yet. Before a layer comes, in this order: what the half layer before it
adds, image features that a family adds behind its first layers (Qwen3-VL), stream edits, probes:
these see what the layer reads. A step where nobody acts or looks passes from layer to layer by the
fused addition and norm, and asks once a layer whether it is such a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from saccade_kernels import ops
from saccade_kernels.layers import RMSNorm
from saccade_server.models.attention import ForwardStep


@dataclass(frozen=True)
class Visual:
    """Image features that are added to the residual behind the first layers, a level each."""

    rows: torch.Tensor  # bool [tokens]: whose they are
    levels: Sequence[torch.Tensor]  # [visual rows, hidden_size]


@dataclass(frozen=True)
class Sites:
    """The residual's sites in one step."""

    step: ForwardStep
    visual: Visual | None
    busy: frozenset[int]  # residuals where something is to do; the last has the number of layers

    @classmethod
    def of(cls, step: ForwardStep, visual: Visual | None = None) -> Sites:
        """Find out once where something is to do."""
        busy: set[int] = set()
        if step.streams is not None:
            busy |= step.streams.layers
        for probe in step.sinks:
            busy |= probe.layers
        if visual is not None:
            busy.update(range(1, len(visual.levels) + 1))
        return cls(step, visual, frozenset(busy))

    def enter(
        self, index: int, residual: torch.Tensor, update: torch.Tensor | None, norm: RMSNorm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Complete residual ``index``; returns it, and its norm for who reads it."""
        if index not in self.busy:
            return ops.add_norm(residual, update, norm)
        residual = self.complete(index, residual, update)
        return residual, ops.rms_norm(residual, norm)

    def complete(
        self, index: int, residual: torch.Tensor, update: torch.Tensor | None
    ) -> torch.Tensor:
        """Residual ``index`` as the layer of that number reads it, [tokens, hidden_size]."""
        if update is not None:
            residual = residual + update
        if index not in self.busy:
            return residual
        visual, streams = self.visual, self.step.streams
        if visual is not None and 1 <= index <= len(visual.levels):
            residual = _show(residual, visual.rows, visual.levels[index - 1])
        if streams is not None and index in streams.layers:
            residual = ops.stream(residual, self.step.batch.control_rows, streams.tables, index)
        for probe in self.step.sinks:
            if index in probe.layers:
                probe.observe(index, residual)
        return residual


def _show(residual: torch.Tensor, rows: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """``residual`` with the features added to its visual rows."""
    shown = residual.clone()
    shown[rows] = residual[rows] + features.to(residual.dtype)
    return shown
