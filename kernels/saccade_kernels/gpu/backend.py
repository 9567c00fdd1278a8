"""The Triton kernels as ops.py calls them; arguments are the reference's."""

from __future__ import annotations

import torch

from saccade_kernels import layers
from saccade_kernels.gpu.columns import attention_rows, column_sums
from saccade_kernels.gpu.decode import decode
from saccade_kernels.gpu.prefill import prefill
from saccade_kernels.gpu.saliency import saliency
from saccade_kernels.gpu.store import store
from saccade_kernels.gpu.streams import stream
from saccade_kernels.layers import Heads, Rotation

__all__ = [
    "add_norm",
    "attention_rows",
    "column_sums",
    "decode",
    "gate",
    "norm_rope_store",
    "prefill",
    "rms_norm",
    "saliency",
    "store",
    "stream",
]

# A layer's small steps: PyTorch's operations, until kernels take their places.
rms_norm = layers.rms_norm
add_norm = layers.add_norm
gate = layers.gate


def norm_rope_store(
    merged: torch.Tensor,
    heads: Heads,
    rotation: Rotation,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """See :func:`saccade_kernels.layers.norm_rope_store`; only what it stores is a kernel."""
    query, key, value = layers.norm_rope(merged, heads, rotation)
    store(key, value, key_cache, value_cache, slots)
    return query
