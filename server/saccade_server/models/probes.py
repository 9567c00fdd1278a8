"""Reading the residual stream: hooks installed once at load, tables that tell them what to do.

Before each decoder layer a hook looks whether the step names probes. A plain step pays one
attribute check a layer. No hook is ever added or removed for a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from saccade_kernels.sinks import SinkTags, sink_scores


class LayerProbe(Protocol):
    """Something that looks at the residual entering some layers; it never changes it."""

    @property
    def layers(self) -> frozenset[int]:
        """The layers it looks at."""
        ...

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        """See the residual entering ``layer``, [tokens, hidden_size]."""
        ...


@dataclass(frozen=True)
class SinkProbe:
    """Finds attention sinks among a step's new tokens and writes the tags that follow.

    Requests of one step that look for the same dimensions share a probe. Scores stay in a pool by
    cache slot, so a later chunk of the same prompt knows the sinks of the earlier ones. The pool
    does not remember which dimensions a score was taken for: whoever shares cached pages between
    requests must keep requests with different dimensions apart.
    """

    layers: frozenset[int]
    rows: torch.Tensor  # int64 [N]: which of the step's tokens to score
    dims: torch.Tensor  # int64 [k]: sink dimensions of the residual stream
    slots: torch.Tensor  # int64 [N]: cache slot of each of these tokens
    scores: torch.Tensor  # float32 [layers, slots]: the pool
    tags: SinkTags
    tag_table: torch.Tensor  # uint8 [rows, layers, max_len]
    met: torch.Tensor  # uint8 [layers, rows]: see SinkTags

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        """Score this step's tokens in ``layer``, then settle the layer's tags."""
        pool = self.scores[layer]
        found = sink_scores(hidden.index_select(0, self.rows), self.dims)
        pool.index_copy_(0, self.slots, found.to(pool.dtype))
        self.tags.write(pool, self.tag_table[:, layer], self.met[layer])


class _ProbeHook:
    """The pre-forward hook of one decoder layer."""

    def __init__(self, layer: int) -> None:
        self._layer = layer

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        step = kwargs.get("step")
        if step is None or not step.sinks:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        for probe in step.sinks:
            if self._layer in probe.layers:
                probe.observe(self._layer, hidden[0])


def install_probes(model: Any) -> None:
    """Give every decoder layer of a transformers model its hook; repeating it changes nothing."""
    for index, layer in enumerate(model.get_decoder().layers):
        if not any(isinstance(hook, _ProbeHook) for hook in layer._forward_pre_hooks.values()):
            layer.register_forward_pre_hook(_ProbeHook(index), with_kwargs=True)
