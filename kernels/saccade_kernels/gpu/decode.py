"""Triton decode: one query row a sequence over a paged cache, split over the keys.

    program (key head, some splits, sequence)     decode_pages.py
        split 0   pages by class  ->  maximum, sum, output of each class that is there
        split 1   ...
    program (head, sequence)                      merge.py
        splits and classes -> output; a mass edit is one more factor

A key head whose query heads edit neither scores nor masses takes all keys for one class, also in a
batch that edits: it costs what it costs alone and gets the same bits. The splits of a sequence
depend on its own length only, never on its neighbours. Key classes of single heads have a form of
their own (decode_per_head.py).

Bytes: keys and values once, 4 * D a key and key head in half precision; pages of several classes
once more a class, from the cache of L2; and partials, 8 * (D + 2) a query head, split and class
that is there, written and read. Products: 4 * D a key and query head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.controls import CLASSES
from saccade_kernels.gpu.arguments import batch_arguments, launch
from saccade_kernels.gpu.decode_pages import attend_split
from saccade_kernels.gpu.decode_per_head import per_head_config, per_head_kernel, per_head_shape
from saccade_kernels.gpu.device import running
from saccade_kernels.gpu.merge import UNALIGNED, UNSPECIALISED, group_is_edited, merge, split_of
from saccade_kernels.gpu.page_classes import page_classes
from saccade_kernels.gpu.tiles import needs_upcast
from saccade_kernels.gpu.tuning import DecodeConfig, decode_config

ROUNDS = 2
"""How often the blocks of a launch may fill the multiprocessors. A captured step has room for the
longest sequence: one program a split would start thousands that find nothing to do."""


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def split_kernel(
    query,
    key_cache,
    value_cache,
    context_lens,
    page_table,
    control_rows,
    tag_rows,
    scale_table,
    absolute_table,
    bias_table,
    weight_table,
    edits_table,
    tags,
    key_weights,
    hides,
    page_words,
    part_max,
    part_sum,
    part_out,
    scale,
    cap,
    layer,
    window,
    splits,
    stride_token,
    stride_head,
    stride_pages,
    stride_words,
    layers,
    max_len,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    EDITED: tl.constexpr,
    EMIT: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Splits of one sequence for the heads of one key head. Grid (KV_HEADS, programs, sequences).

    The programs of a sequence share its splits. Partials are [sequence, head, split, class].
    """
    kv_head = tl.program_id(0)
    sequence = tl.program_id(2)
    context = tl.load(context_lens + sequence)
    first, length = split_of(context, window, SPLIT, MAX_SPLITS)
    low = tl.where(window > 0, context - window, 0)
    heads: tl.constexpr = KV_HEADS * GROUP
    count = tl.cdiv(context - first, length)
    # What a split needs is loaded anew in each: kept, it would cost registers.
    for split in tl.range(tl.program_id(1), count, tl.num_programs(1), disable_licm=True):
        start = first + split * length
        end = tl.minimum(start + length, context)
        if EDITED:
            tag_row = tl.load(tag_rows + sequence).to(tl.int64)
            site = (tl.load(control_rows + sequence) * layers + layer) * heads
            is_edited = True
            if not EMIT:
                group = edits_table + site + kv_head * GROUP
                is_edited = group_is_edited(group, hides + tag_row, GROUP, ROWS)
            attend_split(
                query + sequence * stride_token, key_cache, value_cache,
                page_table + sequence * stride_pages,
                page_words + (sequence * layers + layer).to(tl.int64) * stride_words,
                tags + (tag_row * layers + layer) * max_len, key_weights, tag_row, max_len,
                site, scale_table, absolute_table, bias_table, weight_table,
                part_max, part_sum, part_out, sequence * heads, splits, split, scale, cap,
                start, end, context, low, is_edited, kv_head, stride_head,
                GROUP, ROWS, KV_HEADS, D, DP, C, KEYS, True, CAPPED, UPCAST,
            )  # fmt: skip
        else:
            attend_split(
                query + sequence * stride_token, key_cache, value_cache,
                page_table + sequence * stride_pages,
                None, None, None, 0, 0, 0, None, None, None, None,
                part_max, part_sum, part_out, sequence * heads, splits, split, scale, cap,
                start, end, context, low, False, kv_head, stride_head,
                GROUP, ROWS, KV_HEADS, D, DP, C, KEYS, False, CAPPED, UPCAST,
            )  # fmt: skip


def decode(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    emit: Emission | None = None,
    config: DecodeConfig | None = None,
) -> torch.Tensor:
    """:func:`saccade_kernels.reference.decode` in Triton; ``config`` overrides the table's.

    Reads nothing back from the device and allocates with torch only, so it can be captured.
    """
    sequences, heads, dim = query.shape
    edited = emit is not None or bool(batch.edit(layer))
    constants = shape_of(heads, key_cache.shape[2], dim, edited)
    config = config or decode_config(dim, constants["GROUP"], edited, query.dtype)
    across, kernel = constants["KV_HEADS"], split_kernel
    if edited and batch.per_head_classes:
        kernel, config = per_head_kernel, per_head_config(config)
        constants |= per_head_shape(constants, batch.classes, config)
        across *= constants["BLOCKS"]
    constants |= form_of(config, edited, emit is not None, softcap > 0, query.dtype)
    splits = max(1, min(config.max_splits, -(-batch.max_context // config.split)))
    programs = -(-ROUNDS * running().slots(config.blocks) // max(1, across * sequences))
    programs = splits if kernel is per_head_kernel else min(splits, programs)
    parts = (sequences, heads, splits, constants["C"])
    part_max, part_sum = query.new_empty((2, *parts), dtype=torch.float32).unbind()
    words = page_classes(batch, layer) if edited else None
    output = query.new_empty(query.shape)
    arguments = batch_arguments(batch, layer, edited) | {
        **constants,
        "query": query,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "hides": batch.tables()[1].hides if edited else None,
        "page_words": words,
        "part_max": part_max,
        "part_sum": part_sum,
        "part_out": query.new_empty((*parts, dim), dtype=torch.float32),
        "output": output,
        "scale": scale,
        "cap": softcap,
        "window": window,
        "splits": splits,
        "stride_token": query.stride(0),
        "stride_head": query.stride(1),
        "stride_words": 0 if words is None else words.stride(1),
    }
    options = (config.num_warps, config.num_stages, config.max_registers)
    launch(kernel, (across, programs, sequences), arguments, options)
    merge(arguments, (heads, sequences), emit)
    return output


def shape_of(heads: int, kv_heads: int, dim: int, edited: bool) -> dict[str, int]:
    """Sizes that a decode is compiled for; tiles are powers of two."""
    group, power = heads // kv_heads, triton.next_power_of_2
    return {
        "GROUP": group,
        "ROWS": max(16, power(group)),
        "KV_HEADS": kv_heads,
        "D": dim,
        "DP": max(16, power(dim)),
        "C": CLASSES if edited else 1,
    }


def form_of(
    config: DecodeConfig, edited: bool, emits: bool, capped: bool, dtype: torch.dtype
) -> dict[str, int]:
    """What else a decode is compiled for."""
    return {
        "KEYS": config.block_keys,
        "SPLIT": config.split,
        "MAX_SPLITS": config.max_splits,
        "EDITED": edited,
        "EMIT": emits,
        "CAPPED": capped,
        "UPCAST": needs_upcast(dtype),
    }
