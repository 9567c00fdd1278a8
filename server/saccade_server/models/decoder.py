"""The text decoder of every family: what a description says, over packed rows and a paged cache.

transformers' layers are its oracle and no part of it. A layer is merged products, attention over
the cache, and the small steps between them (:mod:`saccade_kernels.ops`), which a GPU may fuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from saccade_kernels import ops
from saccade_kernels.layers import Heads, RMSNorm, Rotation
from saccade_kernels.residual import SiteKind
from saccade_server.models.attention import AttentionCall, ForwardStep, attend
from saccade_server.models.merging import LayerWeights, linear, take_layers
from saccade_server.models.rotary import RotaryTable
from saccade_server.models.sites import Sites, Update, Visual
from saccade_server.models.spec import DecoderSpec, LayerSpec
from saccade_server.models.tape import Activation


class Decoder:
    """Weights and description of one decoder. It holds no request and no cache."""

    def __init__(self, spec: DecoderSpec, layers: list[LayerWeights], norm: torch.Tensor) -> None:
        self.spec = spec
        self.norm = RMSNorm(norm, spec.epsilon, spec.plus_one)
        self.layers = [
            Layer(index, spec, kind, weights)
            for index, (kind, weights) in enumerate(zip(spec.layers, layers, strict=True))
        ]
        self._rotaries = [RotaryTable(rotary, norm.device) for rotary in spec.rotaries]

    @classmethod
    def take(cls, module: Any, spec: DecoderSpec, prefix: str, device: torch.device) -> Decoder:
        """Build it on ``device`` from the weights of a transformers decoder, which loses them.

        Args:
            prefix: of the module's names in the checkpoint, such as "model.".

        Raises:
            UnsupportedModelError: the weights are not what the description says.
        """
        layers = take_layers(module, spec, f"{prefix}layers.", device)
        return cls(spec, layers, module.norm.weight.data.to(device))

    @property
    def parameters(self) -> int:
        """Numbers that every row is multiplied with: those of the layers' weights."""
        return sum(weight.numel() for _, weight in self.named_weights())

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights of the layers by their names in the checkpoint."""
        for layer in self.layers:
            yield from layer.weights.named

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        step: ForwardStep,
        visual: Visual | None = None,
    ) -> torch.Tensor:
        """Run all layers and the final norm; see :meth:`ServedModel.forward`."""
        sites, rotations = Sites.of(step, visual), self.rotations(positions, hidden.dtype)
        residual, update = hidden, None
        for layer in self.layers:
            residual, update = layer(residual, update, rotations, sites)
        return sites.enter(len(self.layers), residual, update, self.norm)[1]

    def rotations(self, positions: torch.Tensor, dtype: torch.dtype) -> list[Rotation]:
        """Of rows at these positions, int64 [axes, rows], one of each kind that layers have."""
        return [rotary.at(positions, dtype) for rotary in self._rotaries]


class Layer:
    """One layer: its description and its weights."""

    __slots__ = ("activation", "heads", "index", "rotary", "scores", "weights")

    def __init__(
        self, index: int, spec: DecoderSpec, kind: LayerSpec, weights: LayerWeights
    ) -> None:
        self.index = index
        self.weights = weights
        self.heads = Heads(spec.heads, spec.kv_heads, spec.head_dim, weights.head_norm)
        self.scores = (spec.scale, spec.softcap, kind.window)
        self.rotary = kind.rotary
        self.activation = spec.activation

    def __call__(
        self,
        residual: torch.Tensor,
        update: Update | None,
        rotations: list[Rotation],
        sites: Sites,
    ) -> tuple[torch.Tensor, Update]:
        """From the residual before, and what is still to be added to it, to the same behind."""
        own, index = self.weights, self.index
        residual, hidden = sites.enter(index, residual, update, own.attention_norm)
        hidden = self._attend(hidden, rotations[self.rotary], sites)
        update = sites.output(
            SiteKind.ATTENTION_OUTPUT, index, hidden, own.output, own.attention_post_norm
        )
        residual, hidden = sites.add(Activation.MIDDLE, index, residual, update, own.mlp_norm)
        invariant = sites.step.batch.invariant
        gates = linear(hidden, own.gate_up, sites.room(Activation.GATES, index), invariant)
        hidden = ops.gate(sites.keep(Activation.GATES, index, gates), self.activation, invariant)
        return residual, sites.output(
            SiteKind.MLP_OUTPUT, index, hidden, own.down, own.mlp_post_norm
        )

    def _attend(self, hidden: torch.Tensor, rotation: Rotation, sites: Sites) -> torch.Tensor:
        """Head outputs, [tokens, heads * head_dim]."""
        step, index = sites.step, self.index
        keys, values, slots = step.key_caches[index], step.value_caches[index], step.batch.slots
        room = sites.room(Activation.MERGED, index)
        merged = linear(hidden, self.weights.qkv, room, step.batch.invariant)
        merged = sites.keep(Activation.MERGED, index, merged)
        room = sites.room(Activation.QUERY, index)
        query = ops.norm_rope_store(merged, self.heads, rotation, keys, values, slots, room)
        query = sites.keep(Activation.QUERY, index, query)
        call = AttentionCall(query, keys, values, step.batch, index, *self.scores)
        return attend(call, step.measures).flatten(1)
