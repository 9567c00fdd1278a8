"""Triton decode: one query row a sequence over a paged cache, split over the keys.

Virtual rows: the rows of a tile are (query head of the group, key class). A row sees the keys of
its class only, so each is an ordinary online-softmax state and one accumulator holds all classes;
tiles of tensor cores have 16 rows anyway. A second kernel (merge.py) puts splits and classes
together, and there a mass edit is one more factor.

A key head whose query heads edit neither scores nor masses takes the plain path, also in a batch
that edits: it costs what it costs alone and gets the same bits. The splits of a sequence depend on
its own length only, never on its neighbours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.gpu.classes import per_head_site
from saccade_kernels.gpu.decode_tiles import attend, attend_plain
from saccade_kernels.gpu.merge import UNALIGNED, UNSPECIALISED, group_is_edited, merge, split_of
from saccade_kernels.gpu.tiles import needs_upcast, per_head_arguments
from saccade_kernels.gpu.tuning import DecodeConfig, decode_config

ENOUGH_PROGRAMS = 8 * 132
"""Eight for each multiprocessor of an H200, which should keep it busy. A captured step has room for
the longest sequence: one program a split would start thousands that find nothing to do."""

PER_HEAD_KEYS = 32
"""Keys of a tile where heads have classes of their own; more would not fit the registers."""


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
    per_head_rows,
    per_head_heads,
    per_head_classes,
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
    layers,
    max_len,
    GROUP: tl.constexpr,
    PLAIN_ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    EDITED: tl.constexpr,
    EMIT: tl.constexpr,
    PER_HEAD: tl.constexpr,
    PER_HEAD_KEYS: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Splits of one sequence for some virtual rows of one key head: maximum, sum and output.

    Grid (row blocks * KV_HEADS, programs, sequences); the plain form's programs share the splits
    of their sequence, the edited form has one for each. Partials are [sequence, head, split,
    class]; the plain path writes class 0 only.
    """
    kv_head = tl.program_id(0) % KV_HEADS
    block = tl.program_id(0) // KV_HEADS
    sequence = tl.program_id(2)
    context = tl.load(context_lens + sequence)
    first, length = split_of(context, window, SPLIT, MAX_SPLITS)
    low = 0
    if window > 0:
        low = context - window
    own_query = query + sequence * stride_token
    own_pages = page_table + sequence * stride_pages
    heads: tl.constexpr = KV_HEADS * GROUP
    part = sequence * heads

    count = tl.cdiv(context - first, length)
    if EDITED:
        # A loop as below would cost this form a third of the blocks that fit on a multiprocessor.
        split = tl.program_id(1)
        if split >= count:
            return
        start = first + split * length
        end = tl.minimum(start + length, context)
        tag_row = tl.load(tag_rows + sequence).to(tl.int64)
        sites = (tl.load(control_rows + sequence) * layers + layer) * heads
        is_edited = EMIT
        if not EMIT:
            group = edits_table + sites + kv_head * GROUP
            is_edited = group_is_edited(group, hides + tag_row, GROUP, PLAIN_ROWS)
        if is_edited:
            row = block * ROWS + tl.arange(0, ROWS)
            head = kv_head * GROUP + tl.minimum(row // C, GROUP - 1)
            site = sites + head
            own_tags = tags + (tag_row * layers + layer) * max_len
            part_row = ((part + head) * splits + split) * C + row % C
            if PER_HEAD:
                own_site = per_head_site(per_head_rows, tag_row, layer, layers, heads, head)
                is_own = tl.load(per_head_heads + own_site) != 0
                if tl.max(is_own.to(tl.int32), 0) != 0:
                    attend(
                        own_query, key_cache, value_cache, own_pages, site, scale_table,
                        absolute_table, bias_table, weight_table, edits_table, own_tags,
                        key_weights, tag_row, max_len,
                        is_own, per_head_classes + own_site * max_len,
                        part_max, part_sum, part_out, part_row, scale, cap, head, row % C,
                        row < GROUP * C, start, end, low, stride_head,
                        KV_HEADS, D, DP, ROWS, PER_HEAD_KEYS, True, EMIT, True, CAPPED, UPCAST,
                    )  # fmt: skip
                else:  # a sequence without classes of single heads gets the bits that it gets alone
                    attend(
                        own_query, key_cache, value_cache, own_pages, site, scale_table,
                        absolute_table, bias_table, weight_table, edits_table, own_tags,
                        key_weights, tag_row, max_len, None, None,
                        part_max, part_sum, part_out, part_row, scale, cap, head, row % C,
                        row < GROUP * C, start, end, low, stride_head,
                        KV_HEADS, D, DP, ROWS, KEYS, True, EMIT, False, CAPPED, UPCAST,
                    )  # fmt: skip
            else:
                attend(
                    own_query, key_cache, value_cache, own_pages, site, scale_table,
                    absolute_table, bias_table, weight_table, edits_table, own_tags,
                    key_weights, tag_row, max_len, None, None,
                    part_max, part_sum, part_out, part_row, scale, cap, head, row % C,
                    row < GROUP * C, start, end, low, stride_head,
                    KV_HEADS, D, DP, ROWS, KEYS, True, EMIT, False, CAPPED, UPCAST,
                )  # fmt: skip
        elif block == 0:
            attend_plain(
                own_query, key_cache, value_cache, own_pages, part_max, part_sum, part_out,
                part, splits, split, scale, cap, start, end, low, stride_head,
                GROUP, PLAIN_ROWS, KV_HEADS, D, DP, C, KEYS, CAPPED, UPCAST,
            )  # fmt: skip
    else:
        # What a split needs is loaded anew in each: kept, it would cost registers.
        for split in tl.range(tl.program_id(1), count, tl.num_programs(1), disable_licm=True):
            start = first + split * length
            end = tl.minimum(start + length, context)
            attend_plain(
                own_query, key_cache, value_cache, own_pages, part_max, part_sum, part_out,
                part, splits, split, scale, cap, start, end, low, stride_head,
                GROUP, PLAIN_ROWS, KV_HEADS, D, DP, C, KEYS, CAPPED, UPCAST,
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
    kv_heads, edited = key_cache.shape[2], emit is not None or bool(batch.edit(layer))
    per_head_classes = edited and batch.per_head_classes
    shape = shape_of(heads, kv_heads, dim, batch.classes if edited else 1)
    config = config or decode_config(dim, shape["ROWS"], query.dtype)
    if per_head_classes:
        config = with_per_head_classes(config)
    shape["ROWS"], rows = min(config.block_rows, shape["ROWS"]), shape["ROWS"]
    constants = {**shape, "SPLIT": config.split, "MAX_SPLITS": config.max_splits}
    constants |= {"EDITED": edited, "EMIT": emit is not None}
    splits = max(1, min(config.max_splits, -(-batch.max_context // config.split)))
    across = rows // shape["ROWS"] * kv_heads
    programs = splits if edited else min(splits, -(-ENOUGH_PROGRAMS // max(1, across * sequences)))
    parts = (sequences, heads, splits, shape["C"])
    part_max, part_sum = query.new_empty((2, *parts), dtype=torch.float32).unbind()
    part_out = query.new_empty((*parts, dim), dtype=torch.float32)
    layers, max_len = batch.tables()[1].tags.shape[1:] if edited else (0, 0)
    split_kernel[(across, programs, sequences)](
        query,
        key_cache,
        value_cache,
        batch.context_lens,
        batch.page_table,
        batch.control_rows,
        batch.tag_rows,
        *_tables(batch, edited),
        *per_head_arguments(batch, per_head_classes),
        part_max,
        part_sum,
        part_out,
        scale,
        softcap,
        layer,
        window,
        splits,
        query.stride(0),
        query.stride(1),
        batch.page_table.stride(0),
        layers,
        max_len,
        **constants,
        KEYS=config.block_keys,
        PER_HEAD=per_head_classes,
        PER_HEAD_KEYS=min(PER_HEAD_KEYS, config.block_keys),
        CAPPED=softcap > 0,
        UPCAST=needs_upcast(query.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    output = query.new_empty(query.shape)
    merge((part_max, part_sum, part_out), output, batch, layer, window, emit, constants)
    return output


def with_per_head_classes(config: DecodeConfig) -> DecodeConfig:
    """How to launch the form for classes of single heads, so that it fits the registers."""
    rows, stages = min(32, config.block_rows), min(2, config.num_stages)
    return replace(config, block_rows=rows, num_stages=stages)


def _tables(batch: AttentionBatch, edited: bool) -> tuple[torch.Tensor | None, ...]:
    """The table arguments of the split kernel."""
    if not edited:
        return (None,) * 8
    controls, tags = batch.tables()
    programs = (controls.scale, controls.absolute, controls.bias, controls.weight, controls.edits)
    return (*programs, tags.tags, tags.weights, tags.hides)


def shape_of(heads: int, kv_heads: int, dim: int, classes: int) -> dict[str, Any]:
    """Sizes that a decode is compiled for: classes and virtual rows are powers of two."""
    group, power = heads // kv_heads, triton.next_power_of_2
    return {
        "GROUP": group,
        "PLAIN_ROWS": max(16, power(group)),
        "KV_HEADS": kv_heads,
        "D": dim,
        "DP": max(16, power(dim)),
        "C": power(classes),
        "ROWS": max(16, power(group * power(classes))),
    }
