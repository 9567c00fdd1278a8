"""The text decoder of every family: what a description says, over packed rows and a paged cache.

transformers' layers are its oracle and no part of it. A layer is merged products, attention over
the cache, and the small steps between them (:mod:`saccade_kernels.ops`), which a GPU may fuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import linear

from saccade_kernels import layers as plain
from saccade_kernels import ops
from saccade_kernels.batch import AttentionBatch
from saccade_kernels.layers import Heads, RMSNorm, Rotation
from saccade_kernels.residual import SiteKind
from saccade_server.models.attention import AttentionCall, ForwardStep, attend
from saccade_server.models.merging import LayerWeights, Linear, take_layers
from saccade_server.models.rotary import RotaryTable
from saccade_server.models.sites import Sites, Update, Visual, add
from saccade_server.models.spec import DecoderSpec, LayerSpec


class Decoder:
    """Weights and description of one decoder. It holds no request and no cache."""

    def __init__(self, spec: DecoderSpec, layers: list[LayerWeights], norm: torch.Tensor) -> None:
        self.spec = spec
        self.norm = RMSNorm(norm, spec.epsilon, spec.plus_one)
        self._layers = [
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
        # Whoever calls: autograd must be able to follow products with the weights.
        with torch.inference_mode(False), torch.no_grad():
            layers = take_layers(module, spec, f"{prefix}layers.", device)
            return cls(spec, layers, module.norm.weight.data.to(device))

    @property
    def parameters(self) -> int:
        """Numbers that every row is multiplied with: those of the layers' weights."""
        return sum(weight.numel() for _, weight in self.named_weights())

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights of the layers by their names in the checkpoint."""
        for layer in self._layers:
            yield from layer.weights.named

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        step: ForwardStep,
        visual: Visual | None = None,
    ) -> torch.Tensor:
        """Run all layers and the final norm; see :meth:`ServedModel.forward`."""
        sites, count = Sites.of(step, visual), len(self._layers)
        residual, update = self._run(hidden, positions, sites, 0, count)
        return sites.enter(count, residual, update, self.norm)[1]

    def residual(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        step: ForwardStep,
        first: int,
        last: int,
    ) -> torch.Tensor:
        """Run some layers: from the residual entering ``first`` to the one entering ``last``.

        Edits of both residuals act, those of the last layer's output too if ``last`` is the number
        of layers.
        """
        sites = Sites.of(step)
        return sites.complete(last, *self._run(hidden, positions, sites, first, last))

    def _run(
        self, hidden: torch.Tensor, positions: torch.Tensor, sites: Sites, first: int, last: int
    ) -> tuple[torch.Tensor, Update | None]:
        """The last layer's residual, and what its MLP adds to it."""
        rotations = [rotary.at(positions, hidden.dtype) for rotary in self._rotaries]
        residual, update = hidden, None
        for layer in self._layers[first:last]:
            residual, update = layer(residual, update, rotations, sites)
        return residual, update


class Layer:
    """One layer: its description and its weights."""

    __slots__ = (
        "_activation",
        "_heads",
        "_rotary",
        "_scale",
        "_softcap",
        "_window",
        "index",
        "weights",
    )

    def __init__(
        self, index: int, spec: DecoderSpec, kind: LayerSpec, weights: LayerWeights
    ) -> None:
        self.index = index
        self.weights = weights
        self._heads = Heads(spec.heads, spec.kv_heads, spec.head_dim, weights.head_norm)
        self._scale, self._softcap, self._window = spec.scale, spec.softcap, kind.window
        self._rotary = kind.rotary
        self._activation = spec.activation

    def __call__(
        self,
        residual: torch.Tensor,
        update: Update | None,
        rotations: list[Rotation],
        sites: Sites,
    ) -> tuple[torch.Tensor, Update]:
        """From the residual before, and what is still to be added to it, to the same behind."""
        own = self.weights
        residual, hidden = sites.enter(self.index, residual, update, own.attention_norm)
        merged = _linear(hidden, own.qkv)
        hidden = self._attend(merged, rotations[self._rotary], sites.step)
        hidden = _linear(hidden, own.output)
        site = (SiteKind.ATTENTION_OUTPUT, self.index)
        update = sites.act(*site, hidden, own.attention_post_norm)
        residual, hidden = add(residual, update, own.mlp_norm)
        hidden = _linear(ops.gate(_linear(hidden, own.gate_up), self._activation), own.down)
        return residual, sites.act(SiteKind.MLP_OUTPUT, self.index, hidden, own.mlp_post_norm)

    def _attend(self, merged: torch.Tensor, rotation: Rotation, step: ForwardStep) -> torch.Tensor:
        """Head outputs, [tokens, heads * head_dim]."""
        keys, values = step.key_caches[self.index], step.value_caches[self.index]
        if step.again is not None:
            query, key, value = plain.norm_rope(merged, self._heads, rotation)
            call = self._call(query, keys, values, step.batch)
            return step.again.attend(call, key, value).flatten(1)
        slots = step.batch.slots
        query = ops.norm_rope_store(merged, self._heads, rotation, keys, values, slots)
        return attend(self._call(query, keys, values, step.batch), step.measures).flatten(1)

    def _call(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: AttentionBatch
    ) -> AttentionCall:
        scores = (self._scale, self._softcap, self._window)
        return AttentionCall(query, keys, values, batch, self.index, *scores)


def _linear(hidden: torch.Tensor, weights: Linear) -> torch.Tensor:
    return linear(hidden, weights.weight, weights.bias)
