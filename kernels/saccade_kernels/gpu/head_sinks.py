"""Triton sinks of single heads: what a step's rows give to keys is summed, judged and written.

All decodes that ask take one launch, all prompts another, whose sums columns.py has made. Nothing
is read back from the device, so both can be captured, and they repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import triton

from saccade_kernels.batch import AttentionBatch
from saccade_kernels.gpu.arguments import (
    PER_HEAD_TYPES,
    POINTERS,
    TABLE_TYPES,
    Variant,
    batch_arguments,
    launch,
)
from saccade_kernels.gpu.head_sink_kernels import (
    FIND_NUMBERS,
    FIND_VIEWS,
    SETTLE_NUMBERS,
    find_kernel,
    settle_prompts_kernel,
)
from saccade_kernels.gpu.tiles import needs_upcast
from saccade_kernels.head_sinks import HeadSinkTables

SPLIT, MAX_SPLITS = 128, 16
"""Fewest keys of a program, and the most programs of a key head, a power of two."""

KEY_BLOCK = 512
"""Keys that are judged at a time."""

WARPS = 8

TABLE_KINDS: dict[str, str | None] = {
    **dict.fromkeys(("thresholds", "sums"), "*fp32"),
    **dict.fromkeys(("options", "least_rows", "counted", "arrived"), "*i32"),
    "places": "*i64",
}
"""What triton calls the tables."""


def find_head_sinks(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float,
    window: int,
    rows: torch.Tensor,
    tables: HeadSinkTables,
) -> None:
    """:func:`saccade_kernels.head_sinks.find_head_sinks` in Triton; it can be captured."""
    count, (_, heads, dim), kv_heads = len(rows), query.shape, key_cache.shape[2]
    width = batch.max_context
    if not count or not width:
        return
    scores = query.new_empty((count, heads, width), dtype=torch.float32)
    parts = query.new_empty((count, heads, 2, MAX_SPLITS), dtype=torch.float32)
    shape = constants_of(heads, kv_heads, dim)
    arguments = {
        **batch_arguments(batch, layer, edited=True),
        **vars(tables),
        **shape,
        "query": query,
        "key_cache": key_cache,
        "rows": rows,
        "scores": scores,
        "parts": parts,
        "scale": scale,
        "cap": softcap,
        "window": window,
        "width": width,
        "stride_token": query.stride(0),
        "stride_head": query.stride(1),
        "CAPPED": softcap > 0,
        "UPCAST": needs_upcast(query.dtype),
    }
    launch(find_kernel, (kv_heads, MAX_SPLITS, count), arguments, (WARPS, stages(query.dtype)))


def settle_prompt_sinks(
    received: torch.Tensor, batch: AttentionBatch, layer: int, tables: HeadSinkTables
) -> None:
    """:func:`saccade_kernels.head_sinks.settle_prompt_sinks` in Triton."""
    seqs, heads, width = received.shape
    arguments = {
        **batch_arguments(replace(batch, per_head_classes=True), layer, edited=True),
        **vars(tables),
        "received": received,
        "width": width,
        "heads": heads,
        "KEYS": KEY_BLOCK,
    }
    launch(settle_prompts_kernel, (heads, seqs), arguments, (WARPS, 1))


def constants_of(heads: int, kv_heads: int, dim: int) -> dict[str, Any]:
    """What find_kernel is compiled for."""
    group = heads // kv_heads
    return {
        "GROUP": group,
        "KV_HEADS": kv_heads,
        "D": dim,
        "DP": max(16, int(triton.next_power_of_2(dim))),
        "ROWS": max(16, int(triton.next_power_of_2(group))),
        "KEYS": KEY_BLOCK,
        "SPLIT": SPLIT,
        "MAX_SPLITS": MAX_SPLITS,
    }


def stages(dtype: torch.dtype) -> int:
    """Tiles of keys that are on their way; not measured on a GPU yet."""
    return 2 if dtype.itemsize == 4 else 3


def variants() -> Iterator[Variant]:
    """The compiled forms that serving may ask for, for the offline checks."""
    for dim in (64, 80, 96, 128, 256):
        yield _found(torch.bfloat16, dim, 7)
    for group in (1, 2, 4, 8):
        yield _found(torch.bfloat16, 128, group)
    for dtype, dim in product((torch.float16, torch.float32), (64, 128, 256)):
        yield _found(dtype, dim, 1)
    yield _found(torch.bfloat16, 256, 2, capped=True)
    types: dict[str, str | None] = dict.fromkeys(SETTLE_NUMBERS, "i32")
    types |= {"received": "*fp32", "context_lens": "*i32", "tag_rows": "*i32"}
    types |= {**PER_HEAD_TYPES, **TABLE_KINDS}
    yield "settle-prompts", settle_prompts_kernel, types, {"KEYS": KEY_BLOCK}, WARPS, 1


def _found(dtype: torch.dtype, dim: int, group: int, capped: bool = False) -> Variant:
    """find_kernel of one shape."""
    kv_heads, cache = 4, POINTERS[dtype]
    types: dict[str, str | None] = dict.fromkeys(FIND_NUMBERS, "i32")
    types |= dict.fromkeys(FIND_VIEWS, "*i32") | {"scale": "fp32", "cap": "fp32"}
    types |= {**TABLE_TYPES, **PER_HEAD_TYPES, **TABLE_KINDS}
    types |= {"query": cache, "key_cache": cache, "scores": "*fp32", "parts": "*fp32"}
    constants = constants_of(group * kv_heads, kv_heads, dim) | {"CAPPED": capped, "UPCAST": False}
    name = f"find-d{dim}-g{group}-{cache[1:]}" + "-capped" * capped
    return name, find_kernel, types, constants, WARPS, stages(dtype)
