"""The description of a text decoder: everything that tells one family's layers from another's.

It is frozen data, made from a configuration before a weight is read (description.py). The decoder
(decoder.py) runs what it says and knows no family.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rotary:
    """Rotary position embeddings over whole heads, halves paired.

    A pair of dimensions turns by its frequency times the position on its axis; cosines and sines
    are multiplied by ``factor``.
    """

    frequencies: tuple[float, ...]  # radians a position, of each pair: head_dim / 2 of them
    axis: tuple[int, ...]  # of each pair
    factor: float = 1.0


@dataclass(frozen=True)
class LayerSpec:
    """What may differ from layer to layer."""

    window: int = 0  # keys that a query sees, its own the last; 0: all
    rotary: int = 0  # which of the decoder's


@dataclass(frozen=True)
class Biases:
    """Which matrix products add a bias."""

    qkv: bool = False
    output: bool = False
    mlp: bool = False


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder of pre-norm layers: grouped-query attention, then a gated MLP."""

    layers: tuple[LayerSpec, ...]
    rotaries: tuple[Rotary, ...]
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float  # of every norm
    activation: str  # a name in saccade_kernels.layers.ACTIVATIONS
    scale: float  # of scores
    softcap: float = 0.0  # of scores; 0: none
    biases: Biases = Biases()
    plus_one: bool = False  # norms multiply by 1 + weight
    head_norms: bool = False  # of queries and keys, before they are rotated
    post_norms: bool = False  # of what attention and the MLP add to the residual
    embedding_scale: float = 1.0
