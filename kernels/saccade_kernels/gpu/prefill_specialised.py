"""The plain prefill with specialised warps: some load the next keys while others multiply.

The same rows, the same sums in the same order as prefill_plain.py with 64 keys a step. The compiler
makes three groups of warps of the one loop, if it is written as it is here (head dimension 128,
128 rows, 4 warps; masks in every tile, queries, keys, values and output through descriptors that
the program builds, no condition and no second loop):

    4 warps   copy K and V of the pages to come         | page 3 | page 4 | page 5 |
    4 warps   rows   0 to  63: products, weights             | page 2 | page 3 |
    4 warps   rows  64 to 127: products, weights             | page 2 | page 3 |

Bytes and operations are those of prefill_plain.py; a mask on every tile is a compare and a choice
more an entry.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saccade_kernels.gpu.prefill_blocks import (
    UNALIGNED,
    UNSPECIALISED,
    is_edited,
    load_block,
    open_cache,
    seen_tiles,
    site_of,
)
from saccade_kernels.gpu.prefill_tiles import (
    Rows,
    base2,
    finite,
    mask_unseen,
    products,
)
from saccade_kernels.gpu.tiles import HEAD, PAGE, dot


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def prefill_specialised_kernel(
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
    BLOCK_M: tl.constexpr,
    BESIDE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One plain pair. Grid (GROUP * KV_HEADS, blocks), as prefill_plain_kernel's."""
    head = tl.program_id(0)
    heads: tl.constexpr = GROUP * KV_HEADS
    block = load_block(blocks, tl.program_id(1))
    width: tl.constexpr = KV_HEADS * D
    end = block.first_row + block.count
    flags = 0
    edited = False
    if BESIDE:
        site = site_of(block, layer, layers, head, heads)
        flags = tl.load(edits_table + site).to(tl.int32)
        edited = is_edited(block, flags)
    # Descriptors end with the block: rows behind it read as zeros, and are not written.
    own = query + head * (stride_head // 16 * 16)
    queries = tl.make_tensor_descriptor(own, [end, D], [stride_token // 16 * 16, 1], [BLOCK_M, D])
    written = tl.make_tensor_descriptor(output + head * D, [end, D], [heads * D, 1], [BLOCK_M, D])
    cache = open_cache(
        block, key_cache, value_cache, page_table, stride_pages, slots, head // GROUP,
        PAGE, KV_HEADS, D, D, True,
    )  # fmt: skip
    # With slots and keys of a page as dimensions of one stride, a box of the last page may start so
    # that what lies behind the limit is behind the end of the second: it reads as zeros, as stale
    # values must. (triton.tools.ragged_tma does the like.) One page in front keeps starts positive.
    values = tl.make_tensor_descriptor(
        value_cache - PAGE * width, [slots + PAGE, PAGE, width], [width, width, 1], [1, PAGE, D]
    )
    positions = block.position + tl.minimum(tl.arange(0, BLOCK_M), block.count - 1)
    q = queries.load([block.first_row, 0])
    rows = Rows(q, positions, window, block.position + block.count, scale, 0.0)
    first, _, last = seen_tiles(block, window, 1)
    if BESIDE:  # an edited pair sees nothing, and writes behind the end; a return does not compile
        last = tl.where(edited, first, last)
    factor = base2(scale, False)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    for tile in tl.range(first, last, warp_specialize=True):
        page = tl.load(cache.pages + tile)
        scores = products(page, tile, rows, cache, D, False, True, UPCAST)
        scores = mask_unseen(scores, tl.arange(0, PAGE) + tile * PAGE, rows)
        top = tl.maximum(m, tl.max(scores, 1) * factor)
        level = finite(top)
        p = tl.exp2(tl.fma(scores, factor, -level[:, None]))
        rescale = tl.exp2(m - level)
        behind = -tl.minimum(rows.limit - tile * PAGE - PAGE, 0)
        v = values.load([page * PAGE + PAGE - behind, behind, cache.column]).reshape([PAGE, D])
        l = l * rescale + tl.sum(p, 1)
        acc = acc * rescale[:, None] + dot(p.to(v.dtype), v, UPCAST)
        m = top
    result = acc / tl.where(l > 0, l, 1.0)[:, None]
    place = block.first_row
    if BESIDE:
        # edit_output without its branch, with which the compiler does not specialise.
        dims = tl.arange(0, D)
        moved = (flags & HEAD) != 0
        gain = tl.load(gain_table + site, mask=moved, other=1.0)
        shift = tl.load(shift_table + site * D + dims, mask=moved & (dims < D), other=0.0)
        result = tl.where(moved, result * gain + shift[None, :], result)
        place = tl.where(edited, end, place)
    written.store([place, 0], result.to(output.dtype.element_ty))
