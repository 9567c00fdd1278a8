"""Groups of sequences that plain PyTorch attends for at once: a step's decodes, or one prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from saccade_kernels.batch import PAGE, AttentionBatch


@dataclass(frozen=True)
class Group:
    """What a step's layers share about all its decodes, or about one prefill."""

    first: int  # the first of its sequences
    queries: int  # query rows of each sequence
    keys: int  # of the longest sequence; a shorter one repeats its last key, masked
    positions: torch.Tensor  # int64 [seqs, keys] in the sequence
    cache_rows: torch.Tensor  # int64 [seqs * kv_heads * keys] into a cache seen as [-1, head_dim]
    mask: torch.Tensor  # [seqs, 1, queries, keys]: 0 where a query may look, else -inf
    padded: torch.Tensor | None  # bool [seqs, 1, 1, 1]: no keys at all; None if all have some
    control_rows: torch.Tensor  # int32 [seqs, queries]
    tag_rows: torch.Tensor  # int32 [seqs]


def group_of(
    batch: AttentionBatch,
    members: Sequence[int],
    sizes: tuple[int, int],
    key_cache: torch.Tensor,
    dtype: torch.dtype,
    window: int,
) -> Group:
    """A group of sequences, made once a step for each kind of layer.

    Args:
        members: the first sequence, and the one behind the last.
        sizes: query rows of each sequence, and the most keys of any.
    """
    first, last = members
    work, kv_heads = torch.promote_types(dtype, torch.float32), key_cache.shape[2]
    name = ("group", first, last, work, kv_heads, window)
    if name not in batch.derived:
        queries, keys = sizes
        if batch.invariant:
            keys = -(-keys // PAGE) * PAGE
        before = max(first - batch.num_decodes, 0)  # prefills
        start = first - before + sum(p.queries for p in batch.prefills[:before])
        context = batch.context_lens[first:last, None].long()
        key = torch.arange(keys, device=context.device)
        own = torch.minimum(key, (context - 1).clamp(min=0))  # [seqs, keys]
        slots = batch.page_table[first:last].long().gather(1, own // PAGE) * PAGE + own % PAGE
        head = torch.arange(kv_heads, device=context.device)[:, None]
        query = torch.arange(queries, device=context.device) + context - queries  # [seqs, queries]
        visible = key <= query[:, :, None]
        if window > 0:
            visible &= key > query[:, :, None] - window
        mask = torch.zeros(visible.shape, dtype=work, device=context.device)
        padded = (context == 0)[:, :, None, None]
        batch.derived[name] = Group(
            first=first,
            queries=queries,
            keys=keys,
            positions=own,
            cache_rows=(slots[:, None] * kv_heads + head).flatten(),
            mask=mask.masked_fill_(~visible, -torch.inf)[:, None],
            padded=padded if bool(padded.any()) else None,
            control_rows=batch.control_rows[start : start + (last - first) * queries].view(
                -1, queries
            ),
            tag_rows=batch.tag_rows[first:last],
        )
    group = batch.derived[name]
    assert isinstance(group, Group)
    return group


def gather(cache: torch.Tensor, group: Group) -> torch.Tensor:
    """What the cache holds for a group, [seqs * kv_heads, keys, head_dim]."""
    dim = cache.shape[-1]
    return cache.view(-1, dim).index_select(0, group.cache_rows).view(-1, group.keys, dim)
