"""A decoder's weights, taken out of transformers' modules and merged where products are.

Queries, keys and values of a layer come from one product, and so do gates and ups. A layer is
merged and its parts are let go before the next, so memory holds the weights once, and one layer's
twice. Every weight keeps its name: what the description lacks, what is left over and what has
another shape is refused by it, and fingerprints see the checkpoint's tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saccade_kernels import ops
from saccade_kernels.layers import RMSNorm
from saccade_server.models.folder import UnsupportedModelError
from saccade_server.models.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class Linear:
    """A product with the rows of ``weight`` [out, in], and a bias [out]."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


def linear(
    hidden: torch.Tensor,
    weights: Linear,
    out: torch.Tensor | None = None,
    invariant: bool = False,
) -> torch.Tensor:
    """The product of [tokens, in] with merged weights, written to ``out`` if there is one.

    ``invariant``: a row's bits do not depend on the others.
    """
    return ops.linear(hidden, weights.weight, weights.bias, out, invariant)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's; norms of None are not there."""

    attention_norm: RMSNorm
    qkv: Linear  # queries, keys, values
    head_norm: RMSNorm | None  # [heads + kv_heads, head_dim]
    output: Linear
    attention_post_norm: RMSNorm | None
    mlp_norm: RMSNorm
    gate_up: Linear  # gates, ups
    down: Linear
    mlp_post_norm: RMSNorm | None
    named: list[tuple[str, torch.Tensor]]  # as in the checkpoint; parts of the above


class _Parts:
    """The tensors of one layer by name, each to be taken once."""

    def __init__(self, prefix: str, tensors: dict[str, torch.Tensor], device: torch.device) -> None:
        self._prefix, self._tensors, self._device = prefix, tensors, device
        self.named: list[tuple[str, torch.Tensor]] = []

    def vector(self, name: str, size: int) -> torch.Tensor:
        return self.merged([name], [(size,)])

    def linear(self, names: Sequence[str], rows: Sequence[int], columns: int, bias: bool) -> Linear:
        weight = self.merged([f"{n}.weight" for n in names], [(r, columns) for r in rows])
        if not bias:
            return Linear(weight)
        return Linear(weight, self.merged([f"{n}.bias" for n in names], [(r,) for r in rows]))

    def merged(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """These tensors one behind another, on the device."""
        parts = [self._take(name, shape) for name, shape in zip(names, shapes, strict=True)]
        whole = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self._device)
        first = 0
        for name, (rows, *_) in zip(names, shapes, strict=True):
            self.named.append((self._prefix + name, whole.narrow(0, first, rows)))
            first += rows
        return whole

    def _take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        found = self._tensors.pop(name, None)
        if found is None:
            raise UnsupportedModelError(f"the weight {self._prefix}{name} is missing")
        if tuple(found.shape) != shape:
            raise UnsupportedModelError(
                f"the weight {self._prefix}{name} is {list(found.shape)}, and its configuration "
                f"says {list(shape)}"
            )
        return found.detach()

    def close(self) -> None:
        """Refuse what nobody took."""
        if self._tensors:
            left = sorted(self._tensors)[0]
            raise UnsupportedModelError(
                f"the weight {self._prefix}{left} has no place in the model's description"
            )


def take_layers(
    module: Any, spec: DecoderSpec, prefix: str, device: torch.device
) -> list[LayerWeights]:
    """Merge the weights of a transformers decoder's layers and empty its list of layers.

    Args:
        prefix: of the layers' names in the checkpoint, such as "model.layers.".

    Raises:
        UnsupportedModelError: they are not what the description says.
    """
    layers = getattr(module, "layers", None)
    if layers is None:
        raise UnsupportedModelError("the model is served already: its layers were taken out")
    if len(layers) != len(spec.layers):
        message = f"{len(layers)} layers, and the description has {len(spec.layers)}"
        raise UnsupportedModelError(message)
    found: list[LayerWeights] = []
    for index in range(len(layers)):
        tensors = {name: weight.data for name, weight in layers[index].named_parameters()}
        layers[index] = torch.nn.Identity()  # the parts go as they are taken
        found.append(_layer(_Parts(f"{prefix}{index}.", tensors, device), spec))
    del module.layers
    return found


def _layer(parts: _Parts, spec: DecoderSpec) -> LayerWeights:
    width, biases = spec.hidden_size, spec.biases
    attended, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    attention, mlp = "self_attn.", "mlp."

    def norm(name: str) -> RMSNorm:
        return RMSNorm(parts.vector(f"{name}.weight", width), spec.epsilon, spec.plus_one)

    qkv = [f"{attention}{name}_proj" for name in "qkv"]
    gate_up = [f"{mlp}gate_proj", f"{mlp}up_proj"]
    second = "pre_feedforward_layernorm" if spec.post_norms else "post_attention_layernorm"
    made = LayerWeights(
        attention_norm=norm("input_layernorm"),
        qkv=parts.linear(qkv, (attended, keys, keys), width, biases.qkv),
        head_norm=_head_norm(parts, spec) if spec.head_norms else None,
        output=parts.linear([f"{attention}o_proj"], [width], attended, biases.output),
        attention_post_norm=norm("post_attention_layernorm") if spec.post_norms else None,
        mlp_norm=norm(second),
        gate_up=parts.linear(gate_up, [spec.intermediate_size] * 2, width, biases.mlp),
        down=parts.linear([f"{mlp}down_proj"], [width], spec.intermediate_size, biases.mlp),
        mlp_post_norm=norm("post_feedforward_layernorm") if spec.post_norms else None,
        named=parts.named,
    )
    parts.close()
    return made


def _head_norm(parts: _Parts, spec: DecoderSpec) -> RMSNorm:
    """One row a head, queries' first: the two norms of a layer are one operation."""
    query, key = (parts.vector(f"self_attn.{n}_norm.weight", spec.head_dim) for n in "qk")
    rows = torch.cat([query.expand(spec.heads, -1), key.expand(spec.kv_heads, -1)])
    return RMSNorm(rows, spec.epsilon, spec.plus_one)
