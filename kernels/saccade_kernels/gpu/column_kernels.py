"""The Triton kernels of columns.py.

The normaliser of every row is known, so nothing is carried from tile to tile. Column sums keep one
page of keys and walk over the query rows that see it: each sum has one owner, so there are no
atomics, and results repeat bit for bit. Attention rows walk over pages with one query row's heads.
"""

import triton
import triton.language as tl

from saccade_kernels.gpu.classes import edit_tile, load_members, load_program
from saccade_kernels.gpu.tiles import LOG2E, NEVER_ATTEND, PAGE, dot, soft_cap

UNSPECIALISED = [
    "layer",
    "window",
    "width",
    "stride_token",
    "stride_head",
    "stride_pages",
    "layers",
    "max_len",
]
"""Integers whose value must not choose another compiled kernel while serving."""

UNALIGNED = [
    "context_lens",
    "query_starts",
    "page_table",
    "control_rows",
    "tag_rows",
    "lse",
    "first",
    "rows",
    "sequences",
]
"""Tensors that may be views into others; nor must their alignment."""


@triton.jit
def weight_of(score, normaliser):
    """A, which is at most 1; a normaliser near -3e38, of a row all knocked out, is not exact."""
    return tl.exp2(tl.minimum(score - normaliser, 0.0))


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def column_kernel(
    query, key_cache, context_lens, query_starts, page_table, control_rows, tag_rows,
    scale_table, absolute_table, bias_table, weight_table, tags, key_weights,
    lse, first, sums, scale, cap, layer, window, width,
    stride_token, stride_head, stride_pages, layers, max_len,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BLOCK: tl.constexpr, EDITED: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sums of one page of keys of one query head, over query rows in blocks of BLOCK.

    Grid (pages of the longest sequence, HEADS, sequences); the first page has the most rows. sums
    is [sequence, head, width].
    """
    tile = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    context = tl.load(context_lens + sequence)
    start = tl.load(query_starts + sequence)
    past = context - (tl.load(query_starts + sequence + 1) - start)
    low = tile * PAGE
    # Positions [begin, end) of the rows that count and see a key of the page.
    begin = tl.maximum(tl.maximum(tl.load(first + sequence), past), low)
    end = context
    if window > 0:
        end = tl.minimum(end, low + PAGE - 1 + window)

    position = low + tl.arange(0, PAGE)
    inside = position < context
    column = tl.arange(0, DP)
    is_column = column < D
    page = tl.load(page_table + sequence * stride_pages + tile, mask=low < context, other=0)
    kv_heads: tl.constexpr = HEADS // GROUP
    at = (page.to(tl.int64) * PAGE + tl.arange(0, PAGE)) * (kv_heads * D) + head // GROUP * D
    k_mask = inside[None, :] & is_column[:, None]
    k = tl.load(key_cache + at[None, :] + column[:, None], mask=k_mask, other=0.0)
    if EDITED:
        tag_row = tl.load(tag_rows + sequence).to(tl.int64)
        tags_at = tags + (tag_row * layers + layer) * max_len
        tag = tl.load(tags_at + position, mask=inside, other=NEVER_ATTEND).to(tl.int32)
        members = load_members(tag, key_weights, tag_row, max_len, position, inside)

    total = tl.zeros([BLOCK, PAGE], tl.float32)
    for block in tl.range(begin, end, BLOCK):
        row_position = block + tl.arange(0, BLOCK)
        is_row = row_position < end
        token = start + row_position - past
        query_at = query + token.to(tl.int64)[:, None] * stride_token + head * stride_head
        q_mask = is_row[:, None] & is_column[None, :]
        q = tl.load(query_at + column[None, :], mask=q_mask, other=0.0)
        score = dot(q, k, UPCAST) * scale
        visible = is_row[:, None] & (position[None, :] <= row_position[:, None])
        if window > 0:
            visible = visible & (position[None, :] > row_position[:, None] - window)
        if CAPPED:
            score = soft_cap(score, cap)
        if EDITED:
            row = tl.load(control_rows + token, mask=is_row, other=0)
            site = (row * layers + layer) * HEADS + head
            program = load_program(
                site, is_row, scale_table, absolute_table, bias_table, weight_table
            )
            score = edit_tile(score, program, members)
            visible = visible & (tag != NEVER_ATTEND)[None, :]
        else:
            score = score * LOG2E
        normaliser = tl.load(lse + token * HEADS + head, mask=is_row, other=0.0) * LOG2E
        total += tl.where(visible, weight_of(score, normaliser[:, None]), 0.0)
    to = sums + (sequence * HEADS + head).to(tl.int64) * width + position
    tl.store(to, tl.sum(total, 0), mask=position < width)


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def row_kernel(
    query, key_cache, context_lens, query_starts, page_table, control_rows, tag_rows,
    scale_table, absolute_table, bias_table, weight_table, tags, key_weights,
    lse, rows, sequences, weights, scale, cap, layer, window, width,
    stride_token, stride_head, stride_pages, layers, max_len,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    EDITED: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """CHUNK keys of one query row, for the BLOCK >= GROUP heads that share a key head.

    Grid (rows, key heads, chunks of the longest sequence). weights is [row, head, width].
    """
    index = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.load(sequences + index)
    token = tl.load(rows + index)
    context = tl.load(context_lens + sequence)
    last = context - (tl.load(query_starts + sequence + 1) - token)  # the row's position
    low = 0
    if window > 0:
        low = last - window + 1

    member = tl.arange(0, BLOCK)
    is_row = member < GROUP
    head = kv_head * GROUP + member
    column = tl.arange(0, DP)
    is_column = column < D
    query_at = query + token.to(tl.int64) * stride_token + head[:, None] * stride_head
    q_mask = is_row[:, None] & is_column[None, :]
    q = tl.load(query_at + column[None, :], mask=q_mask, other=0.0)
    normaliser = tl.load(lse + token * HEADS + head, mask=is_row, other=0.0)[:, None] * LOG2E
    if EDITED:
        tag_row = tl.load(tag_rows + sequence).to(tl.int64)
        tags_at = tags + (tag_row * layers + layer) * max_len
        site = (tl.load(control_rows + token) * layers + layer) * HEADS + head
        program = load_program(site, is_row, scale_table, absolute_table, bias_table, weight_table)

    kv_heads: tl.constexpr = HEADS // GROUP
    slot = tl.arange(0, PAGE)
    pages_at = page_table + sequence * stride_pages
    tile = tl.program_id(2) * (CHUNK // PAGE)
    page = tl.load(pages_at + tile, mask=tile * PAGE < context, other=0)
    for _ in tl.range(CHUNK // PAGE):
        position = tile * PAGE + slot
        tile += 1
        next_page = tl.load(pages_at + tile, mask=tile * PAGE < context, other=0)
        inside = (position >= low) & (position <= last)
        at = (page.to(tl.int64) * PAGE + slot) * (kv_heads * D) + kv_head * D
        k_mask = inside[None, :] & is_column[:, None]
        k = tl.load(key_cache + at[None, :] + column[:, None], mask=k_mask, other=0.0)
        score = dot(q, k, UPCAST) * scale
        visible = inside
        if CAPPED:
            score = soft_cap(score, cap)
        if EDITED:
            tag = tl.load(tags_at + position, mask=inside, other=NEVER_ATTEND).to(tl.int32)
            members = load_members(tag, key_weights, tag_row, max_len, position, inside)
            score = edit_tile(score, program, members)
            visible = visible & (tag != NEVER_ATTEND)
        else:
            score = score * LOG2E
        weight = tl.where(visible[None, :], weight_of(score, normaliser), 0.0)
        to = (index * HEADS + head).to(tl.int64)[:, None] * width + position[None, :]
        tl.store(weights + to, weight, mask=is_row[:, None] & (position < width)[None, :])
        page = next_page
