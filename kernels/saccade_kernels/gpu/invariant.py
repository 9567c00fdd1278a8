"""Attention of a batch that is invariant, in Triton: a row's bits depend on its own keys alone.

The kernels are the prefill's, for every row. A decode is a block of one row, so it walks its pages
as it would in the chunk of a prompt: ascending, one order of sums wherever a block begins. Splits
of the keys, and lists of keys by class, whose order depends on more than the row, are not used.

    decodes     blocks of one row, made on the device from the batch, in captured steps too
    prefills    blocks of the host's list, behind them
    +---------------------------+            +------------------+
    | BLOCK_M x D, 1 row of it  |    times   | 64 x D: K, V     |  x pages up to the row's own
    +---------------------------+            +------------------+

A decode reads 2 * S * D elements of S keys for each query head, not each key head, and multiplies
BLOCK_M rows where one counts: 4 * BLOCK_M * S * D operations. That is the price of the promise.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from saccade_kernels.batch import PAGE, AttentionBatch, Emission
from saccade_kernels.controls import Edit
from saccade_kernels.gpu import prefill, tuning
from saccade_kernels.gpu.arguments import batch_arguments, launch
from saccade_kernels.gpu.blocks import layer_edits, work_list
from saccade_kernels.gpu.prefill_per_head import prefill_per_head_kernel
from saccade_kernels.gpu.tiles import interpreted
from saccade_kernels.gpu.tuning import PrefillConfig


def invariant_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    emit: Emission | None = None,
    config: PrefillConfig | None = None,
) -> torch.Tensor:
    """Attention of all rows of a step; see :func:`ops.attention`.

    Args:
        query: [tokens, heads, head_dim] of float16, bfloat16 or float32, the last dimension
            contiguous, as in the caches.
        config: of every launch; by default what tuning.json says of each.
    """
    output = query.new_empty(query.shape)
    if not len(query):
        return output
    assert scale > 0
    assert query.stride(2) == 1
    assert query.stride(0) % 16 == query.stride(1) % 16 == 0
    edits = layer_edits(batch, layer) | (int(batch.edit(layer)) if batch.num_decodes else 0)
    arguments = {
        **batch_arguments(batch, layer, edits != 0 or emit is not None),
        "query": query,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "output": output,
        "masses": None if emit is None else emit.masses,
        "lse": None if emit is None else emit.lse,
        "scale": scale,
        "cap": softcap,
        "window": window if window > 0 else prefill.NO_WINDOW,
        "slots": key_cache.shape[0] * PAGE,
        "stride_token": query.stride(0),
        "stride_head": query.stride(1),
        "CAPPED": softcap > 0,
        "UPCAST": interpreted(),
        "BESIDE": edits != 0,
        "beside": 0,  # the two passes see to every edit
        "EMIT": emit is not None,
        "PER_HEAD": batch.per_head_classes,
    }
    if emit is None:
        _launch("plain", batch, arguments, config)
    if emit is not None or edits & ~Edit.HEAD:
        _launch("per_head", batch, arguments, config)
    return output


def _launch(
    form: str,
    batch: AttentionBatch,
    arguments: dict[str, Any],
    config: PrefillConfig | None,
) -> None:
    """Run one form over all blocks; a program whose pair is the other's ends at once."""
    query = arguments["query"]
    heads, dim = query.shape[1:]
    kv_heads = arguments["key_cache"].shape[2]
    config = config or tuning.prefill_config(dim, form, query.dtype)
    kernel: Any = prefill_per_head_kernel
    if form == "plain":
        kernel, config = prefill.plain_form(config, dim, query.dtype, arguments["CAPPED"])
    elif arguments["EMIT"]:
        config = prefill.emitting(config)
    if config.descriptors:
        triton.set_allocator(prefill.scratch)
    blocks = all_blocks(batch, config.block_m, query.device)
    fixed = prefill.constants(dim, heads // kv_heads, kv_heads, config)
    grid = (heads, blocks.shape[0])
    warps = (config.num_warps, config.num_stages)
    launch(kernel, grid, {**arguments, **fixed, "blocks": blocks}, warps)


def all_blocks(batch: AttentionBatch, block_m: int, device: torch.device) -> torch.Tensor:
    """Blocks of a step's rows, decodes first: int32 [blocks, FIELDS], see blocks.py."""
    name = ("invariant blocks", block_m)
    if name not in batch.derived:
        parts = [single_rows(batch)] if batch.num_decodes else []
        if batch.prefills:
            behind = work_list(batch, block_m, device).clone()
            behind[:, 1] += batch.num_decodes
            parts.append(behind)
        batch.derived[name] = torch.cat(parts)
    blocks = batch.derived[name]
    assert isinstance(blocks, torch.Tensor)
    return blocks


def single_rows(batch: AttentionBatch) -> torch.Tensor:
    """Each decode as a block of one row, from the batch's tensors alone: int32 [decodes, FIELDS].

    A padded one is at position -1 and sees no key.
    """
    count = batch.num_decodes
    context, programs = batch.context_lens[:count], batch.control_rows[:count]
    row = torch.arange(count, dtype=torch.int32, device=context.device)
    hides = torch.zeros_like(row)
    if batch.tags is not None:
        hides = batch.tags.hides.index_select(0, batch.tag_rows[:count]).int()
    return torch.stack([row, row, torch.ones_like(row), context - 1, programs, hides], 1)
