"""Question rows of a prefill, split over their keys: one block of rows, one head, one split.

    BLOCK_M query rows             a class's keys in the split, then the next class's
    +-------------+        times   +------------------+-----+---------------+---------------+
    |   x D, q    |                | 64 gathered keys | ... | whole page 64 | whole page 64 |
    +-------------+                +------------------+-----+---------------+---------------+
      maximum, sum, output of each (row, class)  ->  part_max, part_sum, part_out  ->  merge_rows.py

A program takes one class after another from the page lists, each with an online softmax of its own,
and leaves a partial result for each that its split has. Masses, gates, gains and shifts are the
merge's, which reads partials as those of a decode: a query row is what a sequence is there. Of a
class gathered keys come first, then whole pages (what they are: prefill_classes.py).

A split of S keys reads 2 * S * D elements and takes 4 * BLOCK_M * S * D operations, each key once
whatever its class; at 64 rows that is 32 operations a byte of bfloat16 from L2, which all programs
of a group of heads and of neighbouring blocks share. It writes (D + 2) * 4 bytes a row and class
that is there, and the merge reads them: of 64 rows, 8 splits and 2 classes 0.5 MiB a head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from saccade_kernels.batch import AttentionBatch
from saccade_kernels.gpu.arguments import launch
from saccade_kernels.gpu.key_weights import key_weights_of, weigh_keys
from saccade_kernels.gpu.merge import merge_shape
from saccade_kernels.gpu.merge_rows import merge_rows
from saccade_kernels.gpu.prefill_blocks import is_edited, is_own, load_block, load_tile, site_of
from saccade_kernels.gpu.prefill_classes import UNSPECIALISED as OF_CLASSES
from saccade_kernels.gpu.prefill_classes import (
    Heads,
    Lists,
    Span,
    class_edit,
    keys_before,
    keys_up_to,
    lists_of,
    products,
    weigh,
    whole_before,
    whole_pages,
)
from saccade_kernels.gpu.prefill_tiles import base2
from saccade_kernels.gpu.split_rows import BEGUN as BEGUN_FIELD
from saccade_kernels.gpu.split_rows import ITEM_FIELDS as FIELDS_OF_AN_ITEM
from saccade_kernels.gpu.split_rows import waves
from saccade_kernels.gpu.tiles import LOWEST, MASS, PAGE
from saccade_kernels.gpu.tuning import SplitConfig

ITEM_FIELDS = tl.constexpr(FIELDS_OF_AN_ITEM)
BEGUN = tl.constexpr(BEGUN_FIELD)

UNSPECIALISED = [name for name in OF_CLASSES if name != "stride_pages"]
"""Integers whose value must not choose another compiled kernel while serving."""

UNALIGNED = ["items", "tag_rows"]
"""Tensors that may lie anywhere inside a larger one; nor must the place they have there."""


@triton.jit
def listed_keys(
    state, lists, loose, skipped, first, end, low, high, rows, heads, edit,
    D: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Online softmax over gathered keys under any edit: one loop, for two would spill.

    ``loose`` keys, seen by all rows, from number ``skipped`` of the loose ones on; then numbers
    ``first`` to ``end`` of every key, of which a row sees those from its ``low`` to its ``high``.
    """
    m, l, acc = state
    count = loose + end - first
    n = tl.arange(0, PAGE)
    room = lists.max_pages * PAGE
    if count > 0:
        from_loose, from_every = 2 * room + skipped, first - loose
        # Behind the end of the list the last key again, under numbers that no row sees.
        index = tl.minimum(n, count - 1)
        slot = tl.load(lists.keys + tl.where(index < loose, from_loose, from_every) + index)
        for start in tl.range(0, count, PAGE):
            place = slot.to(tl.int64)[:, None] * heads.width
            index = tl.minimum(n + start + PAGE, count - 1)
            slot = tl.load(lists.keys + tl.where(index < loose, from_loose, from_every) + index)
            found = products(rows, place, 0, heads, D, CAPPED, UPCAST)
            number = n + start + from_every  # of a loose key: below every row's high
            is_weighed = edit.weights.used & (number < end)  # then none is loose
            position = tl.load(lists.keys + room + number, mask=is_weighed, other=0)
            bias = edit.bias + weigh_keys(edit.weights, position, is_weighed)
            size = tl.fma(tl.abs(found), edit.absolute, tl.maximum(bias, LOWEST)[None, :])
            seen = (number[None, :] < high[:, None]) & (number[None, :] >= low[:, None])
            found = tl.where(seen, tl.fma(found, edit.factor, size), float("-inf"))
            m, l, acc = weigh(
                (m, l, acc), m, found, 1.0, 0.0, 0.0, place, 0, heads, True, True, D, UPCAST
            )
    return m, l, acc


@triton.jit
def split_of_class(
    lists, span, rows, is_real, heads, edit,
    D: tl.constexpr, DP: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Maximum, sum and output of the rows over one class's keys on the pages of ``span``."""
    m = tl.full([rows.q.shape[0]], float("-inf"), tl.float32)
    l = tl.zeros([rows.q.shape[0]], tl.float32)
    acc = tl.zeros([rows.q.shape[0], DP], tl.float32)
    first, end = keys_before(lists, span.first), keys_before(lists, span.last)
    skipped, whole, loose = whole_before(lists, span.first), 0, 0
    if edit.simple:
        middle = keys_before(lists, span.middle)
        whole = whole_before(lists, span.middle) - skipped
        loose = middle - first - PAGE * whole
    high = tl.minimum(keys_up_to(lists, rows.positions, is_real), end)
    low = keys_up_to(lists, rows.positions - rows.window, is_real)
    low = tl.where(edit.simple, 0, low)
    # In the other order the assembler makes all products wait for each other (C7515).
    state = listed_keys(
        (m, l, acc), lists, loose, first - PAGE * skipped, first + loose + PAGE * whole, end,
        low, high, rows, heads, edit, D, CAPPED, UPCAST,
    )  # fmt: skip
    own = Lists(lists.whole + skipped, lists.keys, lists.before, lists.max_pages)
    return whole_pages(state, m, own, whole, rows, heads, edit, PAGE, True, True, D, CAPPED, UPCAST)


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def prefill_split_kernel(
    query,
    key_cache,
    value_cache,
    items,
    whole,
    keys,
    before,
    tag_rows,
    scale_table,
    absolute_table,
    bias_table,
    weight_table,
    edits_table,
    key_weights,
    per_head_rows,
    per_head_heads,
    part_max,
    part_sum,
    part_out,
    scale,
    cap,
    layer,
    window,
    stride_token,
    stride_head,
    layers,
    max_len,
    classes,
    max_pages,
    first_sequence,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    C: tl.constexpr,
    PER_HEAD: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One item of the work list and one head. Grid (GROUP * KV_HEADS, items).

    Of a class that the split has no key of the maximum alone is written, -inf.
    """
    head = tl.program_id(0)
    heads: tl.constexpr = GROUP * KV_HEADS
    item = items + tl.program_id(1) * ITEM_FIELDS
    block = load_block(item, 0)
    site = site_of(block, layer, layers, head, heads)
    flags = tl.load(edits_table + site).to(tl.int32)
    if not is_edited(block, flags):
        return
    tag_row = tl.load(tag_rows + block.sequence).to(tl.int64)
    if PER_HEAD:  # masses of key classes of the head's own: prefill_per_head.py
        if (flags & MASS) != 0:
            if is_own(per_head_rows, per_head_heads, tag_row, layer, layers, heads, head):
                return
    # What a class needs is loaded anew for each: kept through the loops, it would cost registers.
    for own_class in tl.range(0, C, num_stages=1, disable_licm=True):
        block = load_block(item, 0)
        begun, splits = tl.load(item + BEGUN), tl.load(item + BEGUN + 1)
        split = tl.load(item + BEGUN + 2)
        first, last = tl.load(item + BEGUN + 3), tl.load(item + BEGUN + 4)
        tile = tl.arange(0, BLOCK_M) - (block.position & (BLOCK_M - 1))
        part = (
            (begun + tile * splits).to(tl.int64) * heads + head * splits + split
        ) * C + own_class
        is_real = (tile >= 0) & (tile < block.count)
        lists = lists_of(
            whole, keys, before, block.sequence - first_sequence,
            tl.minimum(own_class, classes - 1), classes, max_pages,
        )  # fmt: skip
        there = keys_before(lists, last) - keys_before(lists, first)
        if (there > 0) & (own_class < classes):
            rows, is_real, _ = load_tile(
                block, query, head, heads, stride_token, stride_head, window, scale, cap,
                BLOCK_M, D, DP,
            )  # fmt: skip
            own = Heads(
                key_cache + head // GROUP * D, value_cache + head // GROUP * D, KV_HEADS * D,
                tl.arange(0, DP),
            )  # fmt: skip
            # What lies before the rows' own page is final for all of them, tags included.
            middle = tl.minimum(block.position // PAGE, last)
            cut = window < (block.position & -BLOCK_M) + BLOCK_M
            span = Span(first, middle, last, cut)
            weights = key_weights_of(weight_table, site, None, key_weights, tag_row, max_len)
            edit = class_edit(
                scale_table, absolute_table, bias_table, site, own_class, weights,
                base2(scale, CAPPED), span,
            )  # fmt: skip
            m, l, acc = split_of_class(lists, span, rows, is_real, own, edit, D, DP, CAPPED, UPCAST)
            tl.store(part_max + part, m, mask=is_real)
            tl.store(part_sum + part, l, mask=is_real)
            column = tl.arange(0, DP)
            out_at = part_out + part[:, None] * D + column[None, :]
            tl.store(out_at, acc, mask=is_real[:, None] & (column < D)[None, :])
        else:
            nothing = tl.full([BLOCK_M], float("-inf"), tl.float32)
            tl.store(part_max + part, nothing, mask=is_real)


def attend_split(
    batch: AttentionBatch, layer: int, window: int, arguments: dict[str, Any], config: SplitConfig
) -> None:
    """Write the edited heads of the rows that are split; see split_rows.py.

    Args:
        window: keys that a row sees up to its own; 0: all.
        arguments: those of the other edited forms, by name: tensors of the rows of all prefills,
            batch, tables and this layer's page lists.
    """
    query = arguments["query"]
    heads, dim = query.shape[1:]
    fixed = constants(dim, heads, arguments["key_cache"].shape[2], batch.classes, config)
    classes: int = fixed["C"]
    work = waves(batch, window, heads * classes * (dim + 2) * 4, config, query.device)
    parts = (max(wave.splits for wave in work), heads, classes)
    part_max, part_sum = query.new_empty((2, *parts), dtype=torch.float32).unbind()
    part_out = query.new_empty((*parts, dim), dtype=torch.float32)
    found = {"part_max": part_max, "part_sum": part_sum, "part_out": part_out}
    arguments = {**arguments, **fixed, **found}
    for wave in work:
        arguments["items"] = wave.items
        grid = (heads, wave.items.shape[0])
        launch(prefill_split_kernel, grid, arguments, (config.num_warps, config.num_stages))
        merge_rows(arguments, wave)


def constants(
    dim: int, heads: int, kv_heads: int, classes: int, config: SplitConfig
) -> dict[str, Any]:
    """What a model's shape, a batch's classes and a configuration fix at compile time."""
    return {
        "GROUP": heads // kv_heads,
        "KV_HEADS": kv_heads,
        "D": dim,
        "DP": max(16, triton.next_power_of_2(dim)),
        "BLOCK_M": config.block_m,
        "C": triton.next_power_of_2(classes),
        **merge_shape(max(2, config.max_splits)),
    }
