"""Reading the residual stream and what layers add to it, where sites.py lets probes look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from saccade_kernels import ops
from saccade_kernels.residual import SiteKind
from saccade_kernels.sinks import SinkTags


class ResidualProbe(Protocol):
    """Something that looks at one kind of site in some layers; it never changes what it sees."""

    @property
    def kind(self) -> SiteKind:
        """Where in a layer it looks."""
        ...

    @property
    def layers(self) -> frozenset[int]:
        """The layers it looks at."""
        ...

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        """See what the site of ``layer`` holds, edits included: [tokens, hidden_size]."""
        ...


@dataclass(frozen=True)
class SinkProbe:
    """Finds attention sinks among a step's new tokens and writes the tags that follow.

    Requests of one step that look for the same dimensions share a probe. Scores stay in a pool by
    cache slot, so a later chunk of the same prompt knows the sinks of the earlier ones. The pool
    does not remember which dimensions a score was taken for: whoever shares cached pages between
    requests must keep requests with different dimensions apart.
    """

    kind: ClassVar[SiteKind] = SiteKind.RESIDUAL
    layers: frozenset[int]
    rows: torch.Tensor  # int64 [N]: which of the step's tokens to score
    dims: torch.Tensor  # int64 [k]: sink dimensions of the residual stream
    slots: torch.Tensor  # int64 [N]: cache slot of each of these tokens
    scores: torch.Tensor  # float32 [layers, slots]: the pool
    tags: SinkTags
    tag_table: torch.Tensor  # uint8 [rows, layers, max_len]
    met: torch.Tensor  # uint8 [layers, rows]: see SinkTags
    settles: bool = False  # tags of a decode's earlier keys too, not its newest alone

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        """Score this step's tokens in ``layer``, then settle the layer's tags."""
        pool = self.scores[layer]
        ops.store_sink_scores(hidden, self.rows, self.dims, self.slots, pool)
        ops.settle_sink_tags(self.tags, pool, self.tag_table[:, layer], self.met[layer])


def settle(probes: Iterable[object]) -> bool:
    """Whether tags of a decode's earlier keys may change inside a layer, by one of the probes."""
    return any(isinstance(probe, SinkProbe) and probe.settles for probe in probes)
