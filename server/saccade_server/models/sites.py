"""Places in the decoder where a step's tables act and its probes look.

    residual           before a layer, and behind the last
    head outputs       between attention and its output projection: measures (attention.py)
    attention output   what attention adds to the residual
    MLP output         what the MLP adds to it

What is added is what a norm behind it leaves, in a family that has one (Gemma 3): a change of an
output is a change of the sum. At each site residual edits come first, then probes, which see what
the model goes on with; before a layer, image features that a family adds behind its first layers
(Qwen3-VL) come before both. Where nobody acts or looks, nothing is launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from saccade_kernels import ops
from saccade_kernels.layers import RMSNorm
from saccade_kernels.residual import SiteKind, site_of
from saccade_server.models.attention import ForwardStep


@dataclass(frozen=True)
class Visual:
    """Image features that are added to the residual behind the first layers, a level each."""

    rows: torch.Tensor  # int64 [N], each once: whose they are
    levels: Sequence[torch.Tensor]  # [N, hidden_size]


Update = tuple[torch.Tensor, RMSNorm | None]
"""What half a layer adds to the residual, and the norm that it still lacks; see Sites.act."""


@dataclass(frozen=True)
class Sites:
    """The edits, probes and image features of one step, and the sites where any of them acts."""

    step: ForwardStep
    visual: Visual | None
    busy: frozenset[int]  # numbers of the sites where something acts

    @classmethod
    def of(cls, step: ForwardStep, visual: Visual | None = None) -> Sites:
        """Collect the busy sites, once a step."""
        assert visual is None or step.kept is None, "no residual is kept beside images"
        busy: set[int] = set()
        if step.residuals is not None:
            busy |= step.residuals.sites
        for probe in step.probes:
            busy.update(site_of(probe.kind, layer) for layer in probe.layers)
        if visual is not None:
            levels = range(1, len(visual.levels) + 1)
            busy.update(site_of(SiteKind.RESIDUAL, layer) for layer in levels)
        return cls(step, visual, frozenset(busy))

    def enter(
        self, index: int, residual: torch.Tensor, update: Update | None, norm: RMSNorm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual ``index`` with half a layer's update, and the norm that the next half reads."""
        if site_of(SiteKind.RESIDUAL, index) not in self.busy:
            return add(residual, update, norm, self._place(index))
        residual = self.complete(index, residual, update)
        return residual, ops.rms_norm(residual, norm)

    def complete(self, index: int, residual: torch.Tensor, update: Update | None) -> torch.Tensor:
        """Residual ``index`` as the layer of that number reads it, [tokens, hidden_size]."""
        residuals, place = self.step.residuals, self._place(index)
        is_edited = residuals is not None and site_of(SiteKind.RESIDUAL, index) in residuals.sites
        if update is not None:
            residual = torch.add(residual, _normed(*update), out=None if is_edited else place)
        visual = self.visual
        if visual is not None and 1 <= index <= len(visual.levels):
            residual = _show(residual, visual.rows, visual.levels[index - 1])
        return self.act(SiteKind.RESIDUAL, index, residual, out=place)[0]

    def _place(self, index: int) -> torch.Tensor | None:
        """Where residual ``index`` is kept; None: nowhere."""
        kept = self.step.kept
        return None if kept is None or index >= len(kept) else kept[index]

    def act(
        self,
        kind: SiteKind,
        index: int,
        hidden: torch.Tensor,
        norm: RMSNorm | None = None,
        out: torch.Tensor | None = None,
    ) -> Update:
        """Apply ``norm``, then edits and probes, to what a site of layer ``index`` holds.

        Args:
            out: where an edited tensor is written.

        Returns:
            [tokens, hidden_size], and the norm that is still to be applied: None at a busy site,
            ``norm`` at an idle one, where it is one launch with the sum that follows.
        """
        site = site_of(kind, index)
        if site not in self.busy:
            return hidden, norm
        hidden = _normed(hidden, norm)
        residuals = self.step.residuals
        if residuals is not None and site in residuals.sites:
            hidden = ops.edit_residual(
                hidden, self.step.batch.control_rows, residuals.tables, site, out
            )
        for probe in self.step.probes:
            if probe.kind == kind and index in probe.layers:
                probe.observe(index, hidden)
        return hidden, None


def add(
    residual: torch.Tensor,
    update: Update | None,
    norm: RMSNorm,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual with the update, written to ``out`` if there is both, and its norm."""
    if update is None:
        return ops.add_norm(residual, None, norm)
    added, update_norm = update
    return ops.add_norm(residual, added, norm, update_norm, out)


def _normed(hidden: torch.Tensor, norm: RMSNorm | None) -> torch.Tensor:
    return hidden if norm is None else ops.rms_norm(hidden, norm)


def _show(residual: torch.Tensor, rows: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """``residual`` with the features added to its visual rows."""
    shown = residual.index_select(0, rows) + features.to(residual.dtype)
    return residual.index_copy(0, rows, shown)
