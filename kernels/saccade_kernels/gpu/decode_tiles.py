"""The loop of the Triton decode: virtual rows against the keys of one split; see decode.py."""

from __future__ import annotations

import triton
import triton.language as tl

from saccade_kernels.gpu.classes import load_by_tag
from saccade_kernels.gpu.key_weights import key_weights_of, weigh_rows
from saccade_kernels.gpu.tiles import (
    LOG2E,
    MASS,
    NEVER_ATTEND,
    PAGE,
    SCORE,
    WIDTH,
    dot,
    edit_score,
    soft_cap,
)


@triton.jit
def attend(
    query,
    key_cache,
    value_cache,
    pages_at,
    site,
    scale_table,
    absolute_table,
    bias_table,
    weight_table,
    edits_table,
    tags_at,
    key_weights,
    tag_row,
    max_len,
    is_own,
    per_head_classes,
    part_max,
    part_sum,
    part_out,
    part,
    scale,
    cap,
    head,
    row_class,
    is_row,
    start,
    end,
    low,
    stride_head,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    EDITED: tl.constexpr,
    EMIT: tl.constexpr,
    PER_HEAD: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Keys ``start`` to ``end``, those before ``low`` unseen, for a tile of virtual rows.

    PER_HEAD: rows where ``is_own`` have classes of their head's own, so that their keys may have
    any tag.
    """
    kv_head = tl.program_id(0) % KV_HEADS
    column = tl.arange(0, DP)
    is_column = column < D
    query_at = query + head[:, None] * stride_head + column[None, :]
    q = tl.load(query_at, mask=is_row[:, None] & is_column[None, :], other=0.0)
    if EDITED:
        flags = tl.load(edits_table + site, mask=is_row, other=0).to(tl.int32)
        is_scored = (flags & SCORE) != 0
        is_apart = (flags & (SCORE | MASS)) != 0
        if EMIT:
            is_apart = is_row
        if not PER_HEAD:
            entry = site * WIDTH + row_class
            row_scale = tl.load(scale_table + entry, mask=is_scored, other=0.0)
            row_absolute = tl.load(absolute_table + entry, mask=is_scored, other=0.0)
            row_bias = tl.load(bias_table + entry, mask=is_scored, other=0.0)
        weights = key_weights_of(weight_table, site, is_scored, key_weights, tag_row, max_len)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, DP], tl.float32)
    # One iteration ahead, or the loads of the next tile could not start before this one's end.
    page = tl.load(pages_at + start // PAGE)
    position = start + tl.arange(0, KEYS)
    if EDITED:
        next_tag = tl.load(tags_at + position, mask=position < end, other=0)
    for tile in tl.range(start, end, KEYS):
        next_page = tl.load(pages_at + tl.minimum(tile + KEYS, end - 1) // PAGE)
        position = tile + tl.arange(0, KEYS)
        inside = (position < end) & (position >= low)
        first = page.to(tl.int64) * (PAGE * KV_HEADS * D) + kv_head * D
        if KEYS == PAGE:
            at = tl.arange(0, KEYS) * (KV_HEADS * D)
        else:
            at = position % PAGE * (KV_HEADS * D)
        # A stale key spoils only its own column, which nobody sees: no need to zero it.
        key_at = key_cache + first + (at[None, :] + column[:, None])
        if DP == D:
            k = tl.load(key_at)
        else:
            k = tl.load(key_at, mask=is_column[:, None], other=0.0)
        score = dot(q, k, UPCAST) * scale
        if CAPPED:
            score = soft_cap(score, cap)
        visible = inside[None, :] & is_row[:, None]
        if EDITED:
            tag = next_tag.to(tl.int32)
            next_tag = tl.load(tags_at + position + KEYS, mask=position + KEYS < end, other=0)
            if PER_HEAD:
                edited = edit_score(
                    score,
                    load_by_tag(scale_table, site, tag, is_scored),
                    load_by_tag(absolute_table, site, tag, is_scored),
                    load_by_tag(bias_table, site, tag, is_scored),
                )
            else:
                edited = edit_score(
                    score,
                    row_scale[:, None],
                    row_absolute[:, None],
                    row_bias[:, None],
                )
            score = tl.where(is_scored[:, None], edited, score * LOG2E)
            score = weigh_rows(score, weights, is_scored, position, position < end)
            key_class = tl.where(is_apart[:, None], tag[None, :], 0)
            if PER_HEAD:
                own_at = per_head_classes[:, None] + position[None, :]
                is_key = is_own[:, None] & (position < end)[None, :]
                own = tl.load(own_at, mask=is_key, other=0).to(tl.int32)
                key_class = tl.where(is_own[:, None], own, key_class)
            visible = visible & (key_class == row_class[:, None]) & (tag != NEVER_ATTEND)[None, :]
        else:
            score = score * LOG2E
        score = tl.where(visible, score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # no key of this class so far
        p = tl.exp2(score - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        v_mask = inside[:, None] & is_column[None, :]
        value_at = value_cache + first + (at[:, None] + column[None, :])
        v = tl.load(value_at, mask=v_mask, other=0.0)
        out = out * shrink[:, None] + dot(p.to(v.dtype), v, UPCAST)
        top = new_top
        page = next_page
    tl.store(part_max + part, top, mask=is_row)
    tl.store(part_sum + part, total, mask=is_row)
    out_at = part_out + part.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(out_at, out, mask=is_row[:, None] & is_column[None, :])


@triton.jit
def attend_plain(
    query, key_cache, value_cache, pages_at, part_max, part_sum, part_out,
    part, splits, split, scale, cap, start, end, low, stride_head,
    GROUP: tl.constexpr, PLAIN_ROWS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, C: tl.constexpr, KEYS: tl.constexpr, CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """A split for the query heads of one key head, all keys in class 0: the plain path.

    Both forms of the kernel come here, and so get the same bits. ``part`` is the site of the
    sequence's first head.
    """
    row = tl.arange(0, PLAIN_ROWS)
    head = tl.program_id(0) % KV_HEADS * GROUP + tl.minimum(row, GROUP - 1)
    attend(
        query, key_cache, value_cache, pages_at, None, None, None, None, None, None, None, None,
        None, None, None, None, part_max, part_sum, part_out, ((part + head) * splits + split) * C,
        scale, cap, head, None,
        row < GROUP, start, end, low, stride_head,
        KV_HEADS, D, DP, PLAIN_ROWS, KEYS, False, False, False, CAPPED, UPCAST,
    )  # fmt: skip
