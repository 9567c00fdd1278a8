"""The ops that everything above the kernels calls, and the one switch between backends.

On every device the reference runs today; a backend with the same signatures takes its place for
its device here and nowhere else.
"""

from __future__ import annotations

import torch

from saccade_kernels import reference
from saccade_kernels.batch import AttentionBatch, Emission


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    emit: Emission | None = None,
) -> torch.Tensor:
    """Store this step's keys and values, then attend; decodes and prefills in one call.

    Args:
        query: [tokens, heads, head_dim]; key and value [tokens, kv_heads, head_dim].
        emit: if given, receives class masses and normalisers of all query rows.

    Returns:
        [tokens, heads, head_dim] in the query's dtype.
    """
    reference.store(key, value, key_cache, value_cache, batch.slots)
    arguments = (key_cache, value_cache, batch, layer, scale, softcap, window)
    decodes = batch.num_decodes
    if decodes == query.shape[0]:
        return reference.decode(query, *arguments, emit)
    if decodes == 0:
        return reference.prefill(query, *arguments, emit)
    first = None if emit is None else emit.rows(slice(0, decodes))
    second = None if emit is None else emit.rows(slice(decodes, None))
    head = reference.decode(query[:decodes], *arguments, first)
    return torch.cat([head, reference.prefill(query[decodes:], *arguments, second)])
