"""Triton attention rows, and their sums over query rows; the specification is columns_reference.py.

Nothing is read back from the device, so both can be captured, and they repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton

from saccade_kernels.batch import PAGE, AttentionBatch
from saccade_kernels.columns_reference import longest_context, score_edits, sequence_of
from saccade_kernels.gpu import device
from saccade_kernels.gpu.arguments import POINTERS, TABLES, Variant, batch_arguments, launch
from saccade_kernels.gpu.column_kernels import UNALIGNED, UNSPECIALISED, column_kernel, row_kernel
from saccade_kernels.gpu.tiles import needs_upcast

CHUNK = 4 * PAGE
"""Keys that one program of attention_rows reads."""

MANY_ROWS, FEW_ROWS = 64, 16
"""Query rows of a tile of column_sums: where there are prefills, and for decodes alone."""

ROWS_OF_WARPS = 32
"""Instead of many, where each warp multiplies for itself."""


def column_sums(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float,
    window: int,
    lse: torch.Tensor,
    first: torch.Tensor,
) -> torch.Tensor:
    """:func:`saccade_kernels.columns_reference.column_sums` in Triton."""
    seqs, heads, width = batch.context_lens.numel(), query.shape[1], longest_context(batch)
    sums = query.new_empty(seqs, heads, width, dtype=torch.float32)
    if sums.numel():
        tensors = {"lse": lse, "first": first, "sums": sums}
        block = column_block(bool(batch.prefills), query.dtype)
        grid = (-(-width // PAGE), heads, seqs)
        numbers = (layer, scale, softcap, window)
        _launch(column_kernel, grid, query, key_cache, batch, numbers, tensors, block)
    return sums


def attention_rows(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float,
    window: int,
    lse: torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor:
    """:func:`saccade_kernels.columns_reference.attention_rows` in Triton."""
    heads, width = query.shape[1], longest_context(batch)
    weights = query.new_empty(len(rows), heads, width, dtype=torch.float32)
    if weights.numel():
        sequences = _sequences(batch, rows)
        tensors = {"lse": lse, "rows": rows, "sequences": sequences, "weights": weights}
        block = row_block(heads // key_cache.shape[2])
        grid = (len(rows), key_cache.shape[2], -(-width // CHUNK))
        numbers = (layer, scale, softcap, window)
        _launch(row_kernel, grid, query, key_cache, batch, numbers, tensors, block)
    return weights


def _sequences(batch: AttentionBatch, rows: torch.Tensor) -> torch.Tensor:
    """The sequence of each row; rows are the same in all layers of a step."""
    known = batch.derived.get("sequences")
    if known is None or known[0] is not rows:
        known = batch.derived["sequences"] = (rows, sequence_of(batch, rows))
    found: torch.Tensor = known[1]
    return found


def _launch(
    kernel: Any,
    grid: tuple[int, int, int],
    query: torch.Tensor,
    key_cache: torch.Tensor,
    batch: AttentionBatch,
    numbers: tuple[int, float, float, int],
    tensors: dict[str, torch.Tensor],
    block: int,
) -> None:
    """Launch one of the kernels; ``numbers`` are layer, scale, softcap and window."""
    layer, scale, softcap, window = numbers
    edited, heads = bool(score_edits(batch, layer)), query.shape[1]
    dim, group = query.shape[2], heads // key_cache.shape[2]
    arguments = {
        **tensors,
        **batch_arguments(batch, layer, edited),
        "query": query,
        "key_cache": key_cache,
        "scale": scale,
        "cap": softcap,
        "window": window,
        "width": longest_context(batch),
        "stride_token": query.stride(0),
        "stride_head": query.stride(1),
        **constants_of(heads, group, dim, block, edited, softcap > 0),
        "UPCAST": needs_upcast(query.dtype),
    }
    launch(kernel, grid, arguments, launch_of(block, arguments["DP"], query.dtype))


def column_block(prefills: bool, dtype: torch.dtype) -> int:
    """Rows of a tile of column_sums; more of four bytes each would not fit the registers."""
    if not prefills or dtype.itemsize == 4:
        return FEW_ROWS
    return MANY_ROWS if device.running().has_group_products else ROWS_OF_WARPS


def row_block(group: int) -> int:
    """Rows of a tile of attention_rows."""
    return max(16, int(triton.next_power_of_2(group)))


def constants_of(
    heads: int, group: int, dim: int, block: int, edited: bool, capped: bool
) -> dict[str, Any]:
    """What both kernels are compiled for."""
    return {
        "HEADS": heads,
        "GROUP": group,
        "D": dim,
        "DP": max(16, triton.next_power_of_2(dim)),
        "BLOCK": block,
        "CHUNK": CHUNK,
        "EDITED": edited,
        "CAPPED": capped,
    }


def launch_of(block: int, padded: int, dtype: torch.dtype) -> tuple[int, int]:
    """Warps and stages; chosen by the compiled code, not measured on a GPU yet."""
    return 8 if block > FEW_ROWS and padded > 128 else 4, 2 if dtype.itemsize == 4 else 3


def variants() -> Iterator[Variant]:
    """The compiled forms that serving may ask for, for the offline checks."""
    for dim, edited in product((64, 80, 96, 128, 256), (False, True)):
        yield from _variants(torch.bfloat16, dim, 7, edited)
    for group in (1, 4, 8):
        yield from _variants(torch.bfloat16, 128, group, True)
    for dtype, dim in product((torch.float16, torch.float32), (64, 128, 256)):
        yield from _variants(dtype, dim, 7, True)
    yield from _variants(torch.bfloat16, 256, 2, True, capped=True)


def _variants(
    dtype: torch.dtype, dim: int, group: int, edited: bool, capped: bool = False
) -> Iterator[Variant]:
    """Column sums with and without prefills, and rows, of one shape."""
    cache, kv_heads = POINTERS[dtype], 4
    name = f"d{dim}-g{group}-{cache[1:]}" + "-edited" * edited + "-capped" * capped
    columns = {column_block(prefills, dtype): column_kernel for prefills in (False, True)}
    for block, kernel in (*columns.items(), (row_block(group), row_kernel)):
        constants = constants_of(group * kv_heads, group, dim, block, edited, capped)
        types: dict[str, str | None] = dict.fromkeys(kernel.arg_names, "*fp32")
        types |= dict.fromkeys(UNSPECIALISED, "i32") | dict.fromkeys(UNALIGNED, "*i32")
        types |= {"query": cache, "key_cache": cache, "lse": "*fp32", "tags": "*u8"}
        types |= {"scale": "fp32", "cap": "fp32"} | ({} if edited else dict.fromkeys(TABLES))
        config = launch_of(block, constants["DP"], dtype)
        short = kernel.__name__.removesuffix("_kernel")
        yield f"{short}{block}-{name}", kernel, types, constants | {"UPCAST": False}, *config
