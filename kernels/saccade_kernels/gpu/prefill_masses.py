"""Masses of the key classes that rows of prompts attend to: the first launch of a mass edit.

    pass over the keys of one class (prefill_classes.py)     maximum and sum of each row, x classes
    behind the classes                                       masses m_c, from them the factors
                                                             m'_c / m_c by transform and gates

What prefill_values.py needs of it is written as levels: of a row whose scores have the maximum top
and the sum total over all classes, a key of class c gets the weight

    2 ** (score - level_c) * norm,  level_c = top + highest - log2(m'_c / m_c),
                                    norm = 2 ** highest / total

so a factor costs nothing but another number to subtract. ``highest`` makes the largest of the
powers 1, whatever an edit does: float16 holds them. With EMIT masses and normalisers are written
too, of all pairs, edited or not; what a row's output is does not depend on it.

Of S keys a tile reads S * D elements and takes 2 * BLOCK_M * S * D operations, half of what plain
attention takes, beside one exponential an entry; it writes WIDTH + 1 numbers a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saccade_kernels.gpu.key_weights import key_weights_of
from saccade_kernels.gpu.prefill_blocks import UNALIGNED, is_own, load_block, load_tile, site_of
from saccade_kernels.gpu.prefill_classes import (
    UNSPECIALISED,
    Heads,
    class_edit,
    lists_of,
    one_class,
    span_of,
)
from saccade_kernels.gpu.prefill_tiles import base2, finite
from saccade_kernels.gpu.tiles import LN2, MASS, MOVED, WIDTH, class_ratios


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def prefill_masses_kernel(
    query,
    key_cache,
    blocks,
    whole,
    keys,
    before,
    tag_rows,
    scale_table,
    absolute_table,
    bias_table,
    weight_table,
    transform_table,
    gate_weight_table,
    gate_threshold_table,
    edits_table,
    key_weights,
    moved,
    per_head_rows,
    per_head_heads,
    levels,
    norms,
    masses,
    lse,
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
    EMIT: tl.constexpr,
    PER_HEAD: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One pair whose masses change, or with EMIT any. Grid (GROUP * KV_HEADS, blocks).

    ``levels`` is [rows, heads, WIDTH], ``norms`` [rows, heads]; both float32.
    """
    head = tl.program_id(0)
    heads: tl.constexpr = GROUP * KV_HEADS
    block = load_block(blocks, tl.program_id(1))
    site = site_of(block, layer, layers, head, heads)
    flags = tl.load(edits_table + site).to(tl.int32)
    if not EMIT:
        if (flags & MASS) == 0:
            return
    tag_row = tl.load(tag_rows + block.sequence).to(tl.int64)
    if PER_HEAD:
        if is_own(per_head_rows, per_head_heads, tag_row, layer, layers, heads, head):
            return
    rows, is_real, place = load_tile(
        block, query, head, heads, stride_token, stride_head, window, scale, cap, BLOCK_M, D, DP
    )
    own = Heads(key_cache + head // GROUP * D, key_cache, KV_HEADS * D, tl.arange(0, DP))
    span = span_of(block.position & -BLOCK_M, rows.limit, window, BLOCK_M)
    weights = key_weights_of(weight_table, site, None, key_weights, tag_row, max_len)
    column = tl.arange(0, WIDTH)
    tops = tl.full([BLOCK_M, WIDTH], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for own_class in tl.range(0, classes, num_stages=1):
        lists = lists_of(
            whole, keys, before, block.sequence - first_sequence, own_class, classes, max_pages
        )
        edit = class_edit(
            scale_table, absolute_table, bias_table, site, own_class, weights,
            base2(scale, CAPPED), span,
        )  # fmt: skip
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        l = tl.zeros([BLOCK_M], tl.float32)
        m, l, _ = one_class(
            (m, l, l), m, lists, span, rows.positions, is_real, rows, own, edit,
            KEYS, True, False, D, CAPPED, UPCAST,
        )  # fmt: skip
        mine = (column == own_class)[None, :]
        tops = tl.where(mine, m[:, None], tops)
        sums = tl.where(mine, l[:, None], sums)

    top = finite(tl.max(tops, 1))
    shares = sums * tl.exp2(tops - top[:, None])
    total = tl.sum(shares, 1)
    divisor = tl.where(total > 0, total, 1.0)
    mass = shares / divisor[:, None]
    if EMIT:
        at = place[:, None] * WIDTH + column[None, :]
        tl.store(masses + at, mass, mask=is_real[:, None])
        normaliser = tl.where(total > 0, (top + tl.log2(divisor)) * LN2, float("-inf"))
        tl.store(lse + place, normaliser, mask=is_real)
        if (flags & MASS) == 0:
            return
    ratio = class_ratios(
        mass, site, transform_table, gate_weight_table, gate_threshold_table, WIDTH
    )
    changed = tl.max((tl.abs(ratio - 1) > MOVED).to(tl.int32), 1)
    count = tl.sum(tl.where(is_real, changed, 0), 0)
    tl.atomic_add(moved + (tag_row * layers + layer) * heads + head, count, mask=count > 0)
    some = ratio > 0
    growth = tl.where(some, tl.log2(tl.where(some, ratio, 1.0)), float("-inf"))
    height = tl.where(shares > 0, tops - top[:, None] + growth, float("-inf"))
    highest = finite(tl.max(height, 1))
    level = (top + highest)[:, None] - growth
    tl.store(levels + place[:, None] * WIDTH + column[None, :], level, mask=is_real[:, None])
    tl.store(norms + place, tl.exp2(highest) / divisor, mask=is_real)
