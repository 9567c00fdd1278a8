"""Triton kernels of saliency.py, second half: saliency and gradients, knowing each class's part."""

import triton
import triton.language as tl

from saccade_kernels.gpu.classes import (
    by_class,
    one_hot,
    per_head_site,
)
from saccade_kernels.gpu.saliency_classes import UNALIGNED, UNSPECIALISED, seen_pages, seen_splits
from saccade_kernels.gpu.tiles import NEVER_ATTEND, PAGE, dot


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def saliency_kernel(
    grad_output,
    key_cache,
    value_cache,
    context_lens,
    page_table,
    tag_rows,
    tags,
    per_head_rows,
    per_head_heads,
    per_head_classes,
    scores,
    slopes,
    tops,
    factors,
    offsets,
    saliency,
    part_query,
    layer,
    window,
    losses,
    splits,
    max_pages,
    stride_pages,
    layers,
    max_len,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    EDITED: tl.constexpr,
    PER_HEAD: tl.constexpr,
    SLOPED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One split of one sequence for one tile of (head of the group, loss) rows of one key head.

    Grid (splits, KV_HEADS * tiles of ROWS rows, sequences). part_query, before the scale, is
    [sequence, loss, head, split, D]; saliency is [sequence, loss, head, max_pages, PAGE].
    """
    split = tl.program_id(0)
    kv_head = tl.program_id(1) % KV_HEADS
    sequence = tl.program_id(2)
    HEADS: tl.constexpr = KV_HEADS * GROUP
    CP: tl.constexpr = 16  # classes, as many as a product of matrices needs
    context = tl.load(context_lens + sequence)
    low, begin, end = seen_pages(context, window, split, SPLIT)
    if begin >= end:
        return

    row = tl.program_id(1) // KV_HEADS * ROWS + tl.arange(0, ROWS)
    is_row = row < GROUP * losses
    head = kv_head * GROUP + tl.minimum(row // losses, GROUP - 1)
    site = (sequence * losses + row % losses) * HEADS + head
    column = tl.arange(0, DP)
    is_column = column < D
    grad_at = grad_output + site.to(tl.int64)[:, None] * D + column[None, :]
    grad = tl.load(grad_at, mask=is_row[:, None] & is_column[None, :], other=0.0).to(tl.float32)
    # Rows are brought near 1, exactly, or small gradients would vanish in half precision.
    unit = tl.exp2(tl.ceil(tl.log2(tl.maximum(tl.max(tl.abs(grad), 1), 1e-30))))
    grad = (grad / unit[:, None]).to(value_cache.dtype.element_ty)
    top = tl.load(tops + sequence * HEADS + head)[:, None]
    klass = tl.arange(0, CP)
    is_entry = is_row[:, None] & (klass < C)[None, :]
    entry = (sequence * HEADS + head)[:, None] * C + klass[None, :]
    row_factor = tl.load(factors + entry, mask=is_entry, other=0.0)
    row_offset = tl.load(offsets + site[:, None] * C + klass[None, :], mask=is_entry, other=0.0)
    score_at = (sequence * HEADS + head).to(tl.int64) * max_pages
    saliency_at = site.to(tl.int64) * max_pages
    if EDITED:
        tag_row = tl.load(tag_rows + sequence).to(tl.int64)
        tags_at = tags + (tag_row * layers + layer) * max_len
    if PER_HEAD:
        own_site = per_head_site(per_head_rows, tag_row, layer, layers, HEADS, head)
        is_own = (is_row & (tl.load(per_head_heads + own_site) != 0))[:, None]
        own_at = (per_head_classes + own_site * max_len)[:, None]
        own_factors = (factors + (sequence * HEADS + head) * C)[:, None]
        own_offsets = (offsets + site * C)[:, None]

    grad_query = tl.zeros([ROWS, DP], tl.float32)
    slot = tl.arange(0, PAGE)
    pages_at = page_table + sequence * stride_pages
    page = tl.load(pages_at + begin)
    for tile in tl.range(begin, end):
        next_page = tl.load(pages_at + tl.minimum(tile + 1, end - 1))
        position = tile * PAGE + slot
        inside = (position >= low) & (position < context)
        at = (page.to(tl.int64) * PAGE + slot) * (KV_HEADS * D) + kv_head * D
        v_mask = inside[None, :] & is_column[:, None]
        v = tl.load(value_cache + at[None, :] + column[:, None], mask=v_mask, other=0.0)
        grad_weight = dot(grad, v, UPCAST) * unit[:, None]
        visible = inside
        tag = tl.zeros([PAGE], tl.int32)
        if EDITED:
            tag = tl.load(tags_at + position, mask=inside, other=NEVER_ATTEND).to(tl.int32)
            visible = visible & (tag != NEVER_ATTEND)
        seen = visible[None, :] & is_row[:, None]
        from_ = (score_at + tile)[:, None] * PAGE + slot[None, :]
        score = tl.load(scores + from_, mask=seen, other=float("-inf"))
        weight = tl.where(seen, tl.exp2(score - top), 0.0)  # A times its sum
        members = one_hot(tag, CP)
        if PER_HEAD:
            factor, offset = by_class(row_factor, members), by_class(row_offset, members)
            own_mask = is_own & inside[None, :]
            own = tl.load(own_at + position[None, :], mask=own_mask, other=0).to(tl.int32)
            factor = tl.where(is_own, tl.load(own_factors + own, mask=own_mask, other=0.0), factor)
            offset = tl.where(is_own, tl.load(own_offsets + own, mask=own_mask, other=0.0), offset)
            edited = factor * weight * grad_weight
            grad_score = edited + weight * offset
        else:
            edited = by_class(row_factor, members) * weight * grad_weight
            grad_score = edited + weight * by_class(row_offset, members)
        to = (saliency_at + tile)[:, None] * PAGE + slot[None, :]
        tl.store(saliency + to, tl.abs(edited), mask=is_row[:, None])
        if SLOPED:
            grad_score = grad_score * tl.load(slopes + from_, mask=seen, other=0.0)
        k_mask = inside[:, None] & is_column[None, :]
        k = tl.load(key_cache + at[:, None] + column[None, :], mask=k_mask, other=0.0)
        grad_query += dot((grad_score / unit[:, None]).to(k.dtype), k, UPCAST)
        page = next_page

    part = (site * splits + split).to(tl.int64)[:, None] * D + column[None, :]
    is_part = is_row[:, None] & is_column[None, :]
    tl.store(part_query + part, grad_query * unit[:, None], mask=is_part)


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def gradient_kernel(
    query,
    grad_output,
    value_cache,
    context_lens,
    page_table,
    tag_rows,
    tags,
    per_head_rows,
    per_head_heads,
    per_head_classes,
    scores,
    slopes,
    tops,
    factors,
    offsets,
    part_query,
    grad_query,
    grad_key,
    grad_value,
    scale,
    layer,
    window,
    losses,
    splits,
    max_pages,
    stride_token,
    stride_head,
    stride_pages,
    layers,
    max_len,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    SPLIT: tl.constexpr,
    EDITED: tl.constexpr,
    PER_HEAD: tl.constexpr,
    SLOPED: tl.constexpr,
):
    """Gradients of one loss and key head, from the ROWS >= GROUP query heads of its group.

    Grid (KV_HEADS, losses, sequences).
    """
    kv_head = tl.program_id(0)
    sequence = tl.program_id(2)
    pair = sequence * losses + tl.program_id(1)
    context = tl.load(context_lens + sequence)
    member = tl.arange(0, ROWS)
    head = kv_head * GROUP + member
    row = sequence * (KV_HEADS * GROUP) + head
    site = pair * (KV_HEADS * GROUP) + head
    column = tl.arange(0, DP)
    is_column = column < D
    is_cell = (member < GROUP)[:, None] & is_column[None, :]
    cell = site.to(tl.int64)[:, None] * D + column[None, :]

    total = tl.zeros([ROWS, DP], tl.float32)
    begin, end = seen_splits(context, window, SPLIT)
    for split in tl.range(begin, end):
        part = (site * splits + split).to(tl.int64)[:, None] * D + column[None, :]
        total += tl.load(part_query + part, mask=is_cell, other=0.0)
    tl.store(grad_query + cell, (total * scale).to(grad_query.dtype.element_ty), mask=is_cell)

    to = (pair * KV_HEADS + kv_head).to(tl.int64) * D + column
    own = context - 1
    # Padding's, and those of a key that is hidden from its own row.
    tl.store(grad_key + to, tl.zeros([DP], grad_key.dtype.element_ty), mask=is_column)
    tl.store(grad_value + to, tl.zeros([DP], grad_value.dtype.element_ty), mask=is_column)
    if own >= 0:
        tag = 0
        if EDITED:
            tag_row = tl.load(tag_rows + sequence).to(tl.int64)
            tag = tl.load(tags + (tag_row * layers + layer) * max_len + own).to(tl.int32)
        if tag != NEVER_ATTEND:
            page = tl.load(page_table + sequence * stride_pages + own // PAGE).to(tl.int64)
            at = ((page * PAGE + own % PAGE) * KV_HEADS + kv_head) * D + column
            v = tl.load(value_cache + at, mask=is_column, other=0.0).to(tl.float32)
            is_member = member < GROUP
            klass = tl.zeros([ROWS], tl.int32) + tag
            if PER_HEAD:
                heads: tl.constexpr = KV_HEADS * GROUP
                own_site = per_head_site(per_head_rows, tag_row, layer, layers, heads, head)
                is_own = tl.load(per_head_heads + own_site, mask=is_member, other=0) != 0
                own_at = per_head_classes + own_site * max_len + own
                found = tl.load(own_at, mask=is_own, other=0).to(tl.int32)
                klass = tl.where(is_own, found, klass)
            grad = tl.load(grad_output + cell, mask=is_cell, other=0.0).to(tl.float32)
            score_at = row.to(tl.int64) * (max_pages * PAGE) + own
            score = tl.load(scores + score_at, mask=is_member, other=float("-inf"))
            weight = tl.exp2(score - tl.load(tops + row, mask=is_member, other=0.0))
            factor = weight * tl.load(factors + row * C + klass, mask=is_member, other=0.0)
            offset = tl.load(offsets + site * C + klass, mask=is_member, other=0.0)
            grad_score = factor * tl.sum(grad * v[None, :], 1) + weight * offset
            if SLOPED:
                grad_score = grad_score * tl.load(slopes + score_at, mask=is_member, other=0.0)
            query_at = query + sequence * stride_token + head[:, None] * stride_head
            q = tl.load(query_at + column[None, :], mask=is_cell, other=0.0).to(tl.float32)
            key = tl.sum((grad_score * scale)[:, None] * q, 0)
            tl.store(grad_key + to, key.to(grad_key.dtype.element_ty), mask=is_column)
            value = tl.sum(factor[:, None] * grad, 0)
            tl.store(grad_value + to, value.to(grad_value.dtype.element_ty), mask=is_column)
