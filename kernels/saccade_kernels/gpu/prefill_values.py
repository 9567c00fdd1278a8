"""The output of prompts' rows under edits: one pass over the keys and values, class by class.

Two forms, by SCORE; their loops and their tiles are those of prefill_classes.py:

    scores    softmax of edited scores or among keys that are not hidden: running maximum, sum and
              accumulator go through all classes
    values    second launch of a mass edit: prefill_masses.py has told the level of every row and
              class, so a class's factor is part of the exponent, and one accumulator takes all

Of S keys a tile reads 2 * S * D elements and takes 4 * BLOCK_M * S * D operations, as plain
attention does, and has no more registers for it: what a class is does not reach the inner loop.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saccade_kernels.gpu.key_weights import key_weights_of
from saccade_kernels.gpu.prefill_blocks import (
    UNALIGNED,
    edit_output,
    is_edited,
    is_own,
    load_block,
    load_block_again,
    load_tile,
    place_of,
    site_of,
)
from saccade_kernels.gpu.prefill_classes import (
    UNSPECIALISED,
    Heads,
    class_edit,
    lists_of,
    one_class,
    span_of,
)
from saccade_kernels.gpu.prefill_tiles import base2
from saccade_kernels.gpu.tiles import MASS, WIDTH


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def prefill_values_kernel(
    query,
    key_cache,
    value_cache,
    output,
    blocks,
    whole,
    keys,
    before,
    tag_rows,
    scale_table,
    absolute_table,
    bias_table,
    weight_table,
    gain_table,
    shift_table,
    edits_table,
    key_weights,
    per_head_rows,
    per_head_heads,
    levels,
    norms,
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
    KEYS: tl.constexpr,
    SCORE: tl.constexpr,
    PER_HEAD: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One pair of the form. Grid (GROUP * KV_HEADS, blocks)."""
    head = tl.program_id(0)
    heads: tl.constexpr = GROUP * KV_HEADS
    block = load_block(blocks, tl.program_id(1))
    site = site_of(block, layer, layers, head, heads)
    flags = tl.load(edits_table + site).to(tl.int32)
    if SCORE:
        if ((flags & MASS) != 0) | (not is_edited(block, flags)):
            return
    else:
        if (flags & MASS) == 0:
            return
    tag_row = tl.load(tag_rows + block.sequence).to(tl.int64)
    if PER_HEAD and not SCORE:
        if is_own(per_head_rows, per_head_heads, tag_row, layer, layers, heads, head):
            return
    rows, is_real, _ = load_tile(
        block, query, head, heads, stride_token, stride_head, window, scale, cap, BLOCK_M, D, DP
    )
    dims = tl.arange(0, DP)
    own = head // GROUP * D
    own = Heads(key_cache + own, value_cache + own, KV_HEADS * D, dims)
    span = span_of(block.position & -BLOCK_M, rows.limit, window, BLOCK_M)
    weights = key_weights_of(weight_table, site, None, key_weights, tag_row, max_len)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DP], tl.float32)
    level = l
    for own_class in tl.range(0, classes, num_stages=1):
        lists = lists_of(
            whole, keys, before, block.sequence - first_sequence, own_class, classes, max_pages
        )
        edit = class_edit(
            scale_table, absolute_table, bias_table, site, own_class, weights,
            base2(scale, CAPPED), span,
        )  # fmt: skip
        if not SCORE:  # found again: what is not kept through the loops leaves registers to them
            again = load_block_again(blocks, tl.program_id(1))
            known, at = place_of(again, head, heads, BLOCK_M)
            level = tl.load(levels + at * WIDTH + own_class, mask=known, other=0.0)
        m, l, acc = one_class(
            (m, l, acc), level, lists, span, rows.positions, is_real, rows, own, edit,
            KEYS, SCORE, True, D, CAPPED, UPCAST,
        )  # fmt: skip

    block = load_block_again(blocks, tl.program_id(1))
    is_real, place = place_of(block, head, heads, BLOCK_M)
    if SCORE:
        result = acc / tl.where(l > 0, l, 1.0)[:, None]
    else:
        result = acc * tl.load(norms + place, mask=is_real, other=0.0)[:, None]
    site = site_of(block, layer, layers, head, heads)
    flags = tl.load(edits_table + site, volatile=True).to(tl.int32)
    result = edit_output(result, flags, gain_table, shift_table, site, D, DP)
    real = is_real[:, None] & (dims < D)[None, :]
    at = output + place[:, None] * D + dims[None, :]
    tl.store(at, result.to(output.dtype.element_ty), mask=real)
