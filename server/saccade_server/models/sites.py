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
from saccade_server.models.merging import Linear, linear
from saccade_server.models.tape import EDITED, OUTPUTS, Activation


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
        """Find out once where something is to do."""
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
        """Complete residual ``index``; returns it, and its norm for who reads it."""
        if site_of(SiteKind.RESIDUAL, index) in self.busy:
            residual = self.complete(index, residual, update)
            return residual, ops.rms_norm(residual, norm)
        return self.add(Activation.RESIDUAL, index, residual, update, norm)

    def complete(self, index: int, residual: torch.Tensor, update: Update | None) -> torch.Tensor:
        """Residual ``index`` as the layer of that number reads it, [tokens, hidden_size]."""
        if update is not None:
            is_edited = self._edits(SiteKind.RESIDUAL, index)
            what = Activation.EDITED_RESIDUAL if is_edited else Activation.RESIDUAL
            residual = torch.add(residual, _normed(*update), out=self.room(what, index))
        visual = self.visual
        if visual is not None and 1 <= index <= len(visual.levels):
            residual = _show(residual, visual.rows, visual.levels[index - 1])
        residual = self.act(SiteKind.RESIDUAL, index, residual)[0]
        return self.keep(Activation.RESIDUAL, index, residual)

    def _edits(self, kind: SiteKind, index: int) -> bool:
        """True if the step edits this site."""
        residuals = self.step.residuals
        return residuals is not None and site_of(kind, index) in residuals.sites

    def add(
        self,
        what: Activation,
        index: int,
        residual: torch.Tensor,
        update: Update | None,
        norm: RMSNorm,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual with the update, and its norm; the sum is kept as this one."""
        added, update_norm = (None, None) if update is None else update
        room = self.room(what, index)
        residual, hidden = ops.add_norm(residual, added, norm, update_norm, room)
        return self.keep(what, index, residual), hidden

    def output(
        self,
        kind: SiteKind,
        index: int,
        hidden: torch.Tensor,
        product: Linear,
        norm: RMSNorm | None,
    ) -> Update:
        """As :meth:`act`, of the product of ``hidden`` that a half of the layer ends with."""
        room, invariant = self.room(OUTPUTS[kind], index), self.step.batch.invariant
        hidden = linear(hidden, product, room, invariant)
        self.keep(OUTPUTS[kind], index, hidden)
        return self.act(kind, index, hidden, norm)

    def room(self, what: Activation, index: int) -> torch.Tensor | None:
        """Where an activation of layer ``index`` may be written; None: anywhere."""
        tape = self.step.tape
        return None if tape is None else tape.room(what, index)

    def keep(self, what: Activation, index: int, made: torch.Tensor) -> torch.Tensor:
        """Let the step's tape, if it has one, take an activation of layer ``index``."""
        if self.step.tape is not None:
            self.step.tape.keep(what, index, made)
        return made

    def act(
        self, kind: SiteKind, index: int, hidden: torch.Tensor, norm: RMSNorm | None = None
    ) -> Update:
        """Apply ``norm``, then edits and probes, to what a site of layer ``index`` holds.

        ``norm``: of what the site sees. Where nothing is to do it is left to the sum behind, with
        which it is one launch.
        """
        site = site_of(kind, index)
        if site not in self.busy:
            return hidden, norm
        is_edited = self._edits(kind, index)
        if norm is not None:
            room = self.room(EDITED[kind], index) if is_edited else None
            hidden = ops.rms_norm(hidden, norm, room)
        if is_edited:
            self.keep(EDITED[kind], index, hidden)
            room = self.room(Activation.RESIDUAL, index) if kind is SiteKind.RESIDUAL else None
            rows, residuals = self.step.batch.control_rows, self.step.residuals
            assert residuals is not None
            hidden = ops.edit_residual(hidden, rows, residuals.tables, site, room)
        for probe in self.step.probes:
            if probe.kind == kind and index in probe.layers:
                probe.observe(index, hidden)
        return hidden, None


def _normed(hidden: torch.Tensor, norm: RMSNorm | None) -> torch.Tensor:
    return hidden if norm is None else ops.rms_norm(hidden, norm)


def _show(residual: torch.Tensor, rows: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """``residual`` with the features added to its visual rows."""
    shown = residual.index_select(0, rows) + features.to(residual.dtype)
    return residual.index_copy(0, rows, shown)
