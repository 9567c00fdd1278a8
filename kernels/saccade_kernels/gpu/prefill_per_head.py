"""The edited prefill in two passes over all keys; the specification is ``reference.prefill``.

One program takes one edited pair of block and head and walks the pages of keys that its rows see.
Beside the launches of lists it has the masses of single heads alone; of batches that are invariant
(invariant.py) it has every edit. Its body is one of two:

* one pass with edited scores or hidden keys;
* two passes, where masses are edited or emitted:

      first pass     mass m_c of every class; then its factor m'_c / m_c, by the transform and gates
      second pass    values, each times the weight of its key and the factor of the key's class

    query rows, one head         one page a step, with its keys' classes
    +--------------+             +------------------+
    | BLOCK_M x D  |    times    | 64 x D: K, K, V  |  x pages up to the diagonal
    +--------------+             +------------------+

Two passes read 3 * S * D elements of S keys where one reads 2, and take 6 * BLOCK_M * S * D
operations where one takes 4, for any number of classes; the products that add up and spread
classes are another 3 * BLOCK_M * S * 32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saccade_kernels.gpu.classes import per_head_site
from saccade_kernels.gpu.key_weights import key_weights_of
from saccade_kernels.gpu.prefill_blocks import (
    UNALIGNED,
    UNSPECIALISED,
    edit_output,
    is_edited,
    is_own,
    load_block,
    load_rows,
    open_cache,
    seen_tiles,
    site_of,
    store_rows,
)
from saccade_kernels.gpu.prefill_tiles import base2, load_edit, mass_pass, score_pass, value_pass
from saccade_kernels.gpu.tiles import LN2, MASS, MOVED, NEVER_ATTEND, PAGE, WIDTH, class_ratios

LARGEST_WEIGHT = tl.constexpr(32768.0)
"""Weights before normalisation stay below it: float16 ends at twice this."""


@triton.jit
def two_passes(
    m, acc, first, middle, last, rows, cache, edit, site, valid,
    transform, gate_weight, gate_threshold, masses, lse, emitted, moved,
    EMIT: tl.constexpr, D: tl.constexpr, CAPPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr, UPCAST: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """Attention under a mass edit. Returns the accumulator's divisor, and the accumulator.

    ``valid``: which rows of the block exist; ``emitted``: index of each row in masses and lse.
    """
    nothing = tl.zeros([m.shape[0], 2 * WIDTH], tl.float32)
    m, sums = mass_pass(
        m, nothing, first, middle, rows, cache, edit, False,
        D, CAPPED, DESCRIPTORS, UPCAST, PER_HEAD,
    )  # fmt: skip
    m, sums = mass_pass(
        m, sums, middle, last, rows, cache, edit, True,
        D, CAPPED, DESCRIPTORS, UPCAST, PER_HEAD,
    )  # fmt: skip
    sums = tl.sum(tl.reshape(sums, [m.shape[0], 2, WIDTH]), 1)
    total = tl.sum(sums, 1)
    divisor = tl.where(total > 0, total, 1.0)
    mass = sums / divisor[:, None]
    classes = tl.arange(0, WIDTH)[None, :]
    if EMIT:
        tl.store(masses + emitted[:, None] * WIDTH + classes, mass, mask=valid[:, None])
        normaliser = tl.where(total > 0, (m + tl.log2(divisor)) * LN2, float("-inf"))
        tl.store(lse + emitted, normaliser, mask=valid)
    ratio = class_ratios(mass, site, transform, gate_weight, gate_threshold, WIDTH)
    changed = tl.max((tl.abs(ratio - 1) > MOVED).to(tl.int32), 1)
    count = tl.sum(tl.where(valid, changed, 0), 0)
    tl.atomic_add(moved, count, mask=count > 0)
    # A faint class may grow until one key of it weighs as much as all keys together.
    largest = tl.max(mass * ratio, 1) * divisor
    shrink = 1.0 / tl.maximum(largest / LARGEST_WEIGHT, 1.0)
    ratios = ratio * shrink[:, None]
    acc = value_pass(
        acc, m, ratios, first, middle, rows, cache, edit,
        False, D, CAPPED, DESCRIPTORS, UPCAST, PER_HEAD,
    )  # fmt: skip
    acc = value_pass(
        acc, m, ratios, middle, last, rows, cache, edit,
        True, D, CAPPED, DESCRIPTORS, UPCAST, PER_HEAD,
    )  # fmt: skip
    return divisor * shrink, acc


@triton.jit(do_not_specialize=[*UNSPECIALISED, "beside"], do_not_specialize_on_alignment=UNALIGNED)
def prefill_per_head_kernel(
    query,
    key_cache,
    value_cache,
    output,
    blocks,
    page_table,
    tag_rows,
    scale_table,
    absolute_table,
    bias_table,
    weight_table,
    transform_table,
    gate_weight_table,
    gate_threshold_table,
    gain_table,
    shift_table,
    edits_table,
    tags,
    key_weights,
    moved,
    per_head_rows,
    per_head_heads,
    per_head_classes,
    masses,
    lse,
    scale,
    cap,
    layer,
    window,
    slots,
    stride_token,
    stride_head,
    stride_pages,
    layers,
    max_len,
    beside,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EMIT: tl.constexpr,
    PER_HEAD: tl.constexpr,
    CAPPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One edited pair, or with EMIT any. Grid (GROUP * KV_HEADS, blocks).

    If ``beside`` other launches see to all pairs but the masses of heads with classes of their own:
    only those are moved and emitted here, and what moves no mass is not written.
    """
    head = tl.program_id(0)
    heads: tl.constexpr = GROUP * KV_HEADS
    block = load_block(blocks, tl.program_id(1))
    site = site_of(block, layer, layers, head, heads)
    flags = tl.load(edits_table + site).to(tl.int32)
    tag_row = tl.load(tag_rows + block.sequence).to(tl.int64)
    count = block.count
    if beside != 0:
        is_own_head = False
        if PER_HEAD:
            is_own_head = is_own(per_head_rows, per_head_heads, tag_row, layer, layers, heads, head)
        if (flags & MASS) == 0:
            count = 0
        if not is_own_head or (not EMIT and count == 0):
            return
    elif not EMIT:
        if not is_edited(block, flags):
            return
    rows = load_rows(
        block, query, head, stride_token, stride_head, window, scale, cap, BLOCK_M, D, DP
    )
    cache = open_cache(
        block, key_cache, value_cache, page_table, stride_pages, slots, head // GROUP,
        PAGE, KV_HEADS, D, DP, DESCRIPTORS,
    )  # fmt: skip
    first, middle, last = seen_tiles(block, window, 1)

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DP], tl.float32)
    tagged = tag_row * layers + layer
    own_tags = tags + tagged * max_len
    classes = own_tags
    if PER_HEAD:
        own = per_head_site(per_head_rows, tag_row, layer, layers, heads, head)
        if tl.load(per_head_heads + own) != 0:
            classes = per_head_classes + own * max_len
    edit = load_edit(
        scale_table,
        absolute_table,
        bias_table,
        key_weights_of(weight_table, site, None, key_weights, tag_row, max_len),
        site,
        own_tags,
        tl.where(block.hides != 0, NEVER_ATTEND, -1),
        base2(scale, CAPPED),
        classes,
    )
    if EMIT or (flags & MASS) != 0:
        row = tl.arange(0, BLOCK_M)
        token = (block.first_row + row).to(tl.int64)
        l, acc = two_passes(
            m, acc, first, middle, last, rows, cache, edit, site, row < block.count,
            transform_table, gate_weight_table, gate_threshold_table,
            masses, lse, token * heads + head,
            moved + tagged * heads + head,
            EMIT, D, CAPPED, DESCRIPTORS, UPCAST, PER_HEAD,
        )  # fmt: skip
    else:
        state = (m, l, acc)
        state = score_pass(
            state, first, middle, rows, cache, edit, False, D, CAPPED, DESCRIPTORS, UPCAST
        )
        m, l, acc = score_pass(
            state, middle, last, rows, cache, edit, True, D, CAPPED, DESCRIPTORS, UPCAST
        )
    result = acc / tl.where(l > 0, l, 1.0)[:, None]
    result = edit_output(result, flags, gain_table, shift_table, site, D, DP)
    store_rows(result, block.first_row, count, output, head, heads, D)
