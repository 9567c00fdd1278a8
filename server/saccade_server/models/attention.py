"""Attention of a step in one layer, and what may look at it: the site of head outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from saccade_kernels import ops
from saccade_kernels.batch import AttentionBatch, Emission
from saccade_server.models.probes import ResidualProbe
from saccade_server.models.residual import ResidualStep
from saccade_server.models.tape import Tape


@dataclass(frozen=True)
class ForwardStep:
    """Everything one forward pass needs besides embeddings and positions.

    ``probes`` are the probes of this step, ``measures`` what looks at its attention; a plain step
    has none. ``tape`` takes the activations of rows whose layers are gone back through.
    """

    batch: AttentionBatch
    key_caches: Sequence[torch.Tensor]  # per layer [pages, PAGE, kv_heads, head_dim]
    value_caches: Sequence[torch.Tensor]  # likewise
    probes: tuple[ResidualProbe, ...] = ()
    measures: tuple[AttentionMeasure, ...] = ()
    residuals: ResidualStep | None = None  # what it does to residuals; None: nothing
    tape: Tape | None = None


@dataclass(frozen=True)
class AttentionCall:
    """One layer's attention of a step; the arguments of :func:`ops.attention`."""

    query: torch.Tensor  # [tokens, heads, head_dim]
    key_cache: torch.Tensor  # with the step's keys; likewise the values
    value_cache: torch.Tensor
    batch: AttentionBatch
    layer: int
    scale: float
    softcap: float
    window: int

    def run(self, emit: Emission | None = None) -> torch.Tensor:
        """Head outputs, [tokens, heads, head_dim]."""
        return ops.attention(
            self.query,
            self.key_cache,
            self.value_cache,
            self.batch,
            self.layer,
            self.scale,
            self.softcap,
            self.window,
            emit,
        )


class AttentionMeasure(Protocol):
    """Something that measures the attention of some layers and completes the edits of that layer.

    It works on the device alone: it may write the rows of the control and tag tables that its own
    sequences hold, and nothing is read back to the host.
    """

    @property
    def layers(self) -> frozenset[int]:
        """The layers it measures."""
        ...

    def before(self, call: AttentionCall) -> None:
        """Look at a call before it runs."""
        ...

    def after(self, call: AttentionCall, output: torch.Tensor) -> torch.Tensor:
        """Look at head outputs [tokens, heads, head_dim]; returns what goes on."""
        ...


def attend(call: AttentionCall, measures: Sequence[AttentionMeasure]) -> torch.Tensor:
    """Head outputs [tokens, heads, head_dim], with what looks at this layer."""
    if not measures:
        return call.run()
    looking = [measure for measure in measures if call.layer in measure.layers]
    for measure in looking:
        measure.before(call)
    output = call.run()
    for measure in looking:
        output = measure.after(call, output)
    return output
