"""Shapes of the models the issue names, and the least time a step of them can take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Heads:
    """Attention heads of one layer."""

    name: str
    heads: int
    kv_heads: int
    dim: int = 128

    def kv_bytes(self, tokens: int) -> int:
        """Keys and values of one layer, bf16."""
        return tokens * 2 * self.kv_heads * self.dim * 2

    def causal_flops(self, length: int, sequences: int = 1) -> float:
        """Products of queries and keys, and of weights and values; half of them are masked."""
        return 2.0 * sequences * length * length * self.heads * self.dim


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of the chip: bytes and bf16 operations a second."""

    copy: float  # bytes read plus bytes written
    read: float
    weights: float  # bytes of weights that a product read
    flops: float

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Ceilings:
        """From the figures of the part named "ceilings"."""
        products = found["matmul"].values()
        return cls(
            copy=found["copy"]["tb_s"] * 1e12,
            read=found["read"]["tb_s"] * 1e12,
            weights=max(product["weights_tb_s"] for product in products) * 1e12,
            flops=max(product["tflop_s"] for product in products) * 1e12,
        )

    @property
    def memory(self) -> float:
        """The best rate at which anything moved bytes: what nothing is expected to beat.

        A step mostly reads, and reading alone is far faster than copying: over a copy's rate an
        H200's steps take 0.76 of the least time they can.
        """
        return max(self.copy, self.read, self.weights)


@dataclass(frozen=True)
class ModelShape:
    """A decoder."""

    name: str
    layers: int
    attention: Heads
    hidden: int
    intermediate: int
    vocabulary: int

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices."""
        rows = self.attention.heads + 2 * self.attention.kv_heads
        attention = self.hidden * self.attention.dim * (rows + self.attention.heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def weights(self) -> int:
        """Those that a decode step reads."""
        return self.layer_weights + self.vocabulary * self.hidden

    def decode_floor(self, batch: int, context: int, ceilings: Ceilings) -> float:
        """Seconds: every weight and every key read once, or the arithmetic if that takes longer."""
        linear = max(2 * self.weights / ceilings.memory, 2 * self.weights * batch / ceilings.flops)
        tokens = batch * context
        moved = self.layers * self.attention.kv_bytes(tokens) / ceilings.memory
        products = 4.0 * tokens * self.attention.heads * self.attention.dim * self.layers
        return linear + max(moved, products / ceilings.flops)

    def prefill_floor(self, length: int, ceilings: Ceilings) -> float:
        """Seconds of one prompt; logits of its last row only."""
        linear = 2.0 * self.layer_weights * length + 2.0 * self.vocabulary * self.hidden
        attention = self.layers * self.attention.causal_flops(length)
        return (linear + attention) / ceilings.flops


MHA = Heads("32/32", 32, 32)
GQA = Heads("28/4", 28, 4)
LLAVA = ModelShape("llava-1.5-7b", 32, MHA, 4096, 11008, 32064)
QWEN = ModelShape("qwen2.5-vl-7b", 28, GQA, 3584, 18944, 152064)

TINY_MHA = Heads("4/4", 4, 4, 16)
TINY_GQA = Heads("6/2", 6, 2, 16)
TINY_LLAVA = ModelShape("tiny-llava", 4, Heads("4/4", 4, 4, 16), 64, 128, 320)
TINY_QWEN = ModelShape("tiny-qwen", 4, Heads("6/2", 6, 2, 16), 96, 128, 320)

MODELS = {"llava": (LLAVA, TINY_LLAVA), "qwen": (QWEN, TINY_QWEN)}
"""By name: the real shape, and one for a run without a GPU."""
