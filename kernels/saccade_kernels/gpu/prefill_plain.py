"""The plain prefill: causal attention without tables, one pass over the keys.

Grid (heads, blocks of query rows), heads the fast axis: the slowest blocks of all heads come first,
so nothing slow is left for the end, and the heads of a group share their keys in L2.

    query rows of a block, one head          keys and values of one page a step
    +---------------------------+            +------------------+
    | BLOCK_M x D, in registers |    times   | 64 x D, K then V |  x pages up to the diagonal
    +---------------------------+            +------------------+

Of S keys a block reads 2 * S * D elements, once a head of the group from L2, and takes
4 * BLOCK_M * S * D operations: at 128 rows 64 operations a byte of bfloat16, so the products bound
it, and beside them one exponential an entry of the tile.

Beside edits (BESIDE) the grid has all blocks of the step, and a program whose pair is edited ends
at once; gains and shifts of a head's output are done here. Both forms run the same loop: a row that
nothing edits gets the same bits whatever is edited beside it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saccade_kernels.gpu.prefill_blocks import (
    FIELDS,
    UNALIGNED,
    UNSPECIALISED,
    edit_output,
    is_edited,
    load_block,
    load_rows,
    open_cache,
    seen_tiles,
    site_of,
    store_rows,
)
from saccade_kernels.gpu.prefill_tiles import base2, finite, load_page, mask_unseen, products
from saccade_kernels.gpu.tiles import PAGE, dot


@triton.jit
def plain_pass(
    state,
    first,
    last,
    rows,
    cache,
    MASKED: tl.constexpr,
    D: tl.constexpr,
    CAPPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Online softmax; ``state`` is each row's maximum, sum and accumulator.

    MASKED says that some query of the block must not see some key of the tiles. A key that is seen
    takes the same operations either way, so where a chunk or a run is cut does not show.
    """
    m, l, acc = state
    keys: tl.constexpr = cache.offsets.shape[0]
    step: tl.constexpr = keys // PAGE
    factor = base2(rows.scale, CAPPED)
    n = tl.arange(0, keys)
    if first < last:
        upcoming = tl.load(cache.pages + first)
        beside = tl.load(cache.pages + first + 1, mask=first + 1 < last, other=0)
        for tile in tl.range(first, last, step):
            if step == 1:
                page = upcoming
            else:
                page = tl.where(n < PAGE, upcoming, beside)[:, None]
                beside = tl.load(
                    cache.pages + tile + step + 1, mask=tile + step + 1 < last, other=0
                )
            upcoming = tl.load(cache.pages + tile + step, mask=tile + step < last, other=0)
            scores = products(page, tile, rows, cache, D, CAPPED, DESCRIPTORS, UPCAST)
            if MASKED:
                scores = mask_unseen(scores, n + tile * PAGE, rows)
            top = tl.maximum(m, tl.max(scores, 1) * factor)
            level = finite(top)
            p = tl.exp2(tl.fma(scores, factor, -level[:, None]))
            rescale = tl.exp2(m - level)
            v = load_page(cache.value, page, tile, rows, cache, D, DESCRIPTORS, MASKED)
            l = l * rescale + tl.sum(p, 1)
            acc = acc * rescale[:, None] + dot(p.to(v.dtype), v, UPCAST)
            m = top
    return m, l, acc


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def prefill_plain_kernel(
    query,
    key_cache,
    value_cache,
    output,
    blocks,
    page_table,
    gain_table,
    shift_table,
    edits_table,
    scale,
    cap,
    layer,
    window,
    slots,
    stride_token,
    stride_head,
    stride_pages,
    layers,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEYS: tl.constexpr,
    BESIDE: tl.constexpr,
    CAPPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One plain pair; the tables are read beside edits alone."""
    head = tl.program_id(0)
    heads: tl.constexpr = GROUP * KV_HEADS
    block = load_block(blocks, tl.program_id(1))
    if BESIDE:
        site = site_of(block, layer, layers, head, heads)
        if is_edited(block, tl.load(edits_table + site).to(tl.int32)):
            return
    rows = load_rows(
        block, query, head, stride_token, stride_head, window, scale, cap, BLOCK_M, D, DP
    )
    cache = open_cache(
        block, key_cache, value_cache, page_table, stride_pages, slots, head // GROUP,
        KEYS, KV_HEADS, D, DP, DESCRIPTORS,
    )  # fmt: skip
    first, middle, last = seen_tiles(block, window, KEYS // PAGE)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DP], tl.float32)
    state = (m, l, acc)
    state = plain_pass(state, first, middle, rows, cache, False, D, CAPPED, DESCRIPTORS, UPCAST)
    m, l, acc = plain_pass(state, middle, last, rows, cache, True, D, CAPPED, DESCRIPTORS, UPCAST)
    result = acc / tl.where(l > 0, l, 1.0)[:, None]
    # Read again: what is not kept through the passes leaves registers to them.
    again = blocks + tl.program_id(1) * FIELDS
    if BESIDE:
        site = (tl.load(again + 4, volatile=True).to(tl.int64) * layers + layer) * heads + head
        flags = tl.load(edits_table + site, volatile=True).to(tl.int32)
        result = edit_output(result, flags, gain_table, shift_table, site, D, DP)
    first_row = tl.load(again + 1, volatile=True)
    count = tl.load(again + 2, volatile=True)
    store_rows(result, first_row, count, output, head, heads, D)
