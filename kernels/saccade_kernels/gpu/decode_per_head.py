"""Triton decode for key classes of single heads: a page then has as many words as there are heads.

Virtual rows: the rows of a tile are (query head of the group, key class). A row sees the keys of
its class in its head only, so each is an ordinary online-softmax state.

    group of 2, 4 classes      keys of a tile, classes of head 0    0 0 1 0 2 ...
    row 0  head 0, class 0                                          x x . x .
    row 1  head 0, class 1                                          . . x . .
    ...
    row 4  head 1, class 0     classes of head 1                    0 1 0 0 0 ...  x . x x x

A key head none of whose heads has classes of its own takes the pages of decode_pages.py, and gets
the bits that it gets beside no such sequence.

Tiles: VIRTUAL rows x PER_HEAD_KEYS keys. Keys and values are read once for each block of rows,
4 * D bytes a key in half precision, and a byte a key and head for classes; 4 * D products a row and
key, of which one in C counts.
"""

from __future__ import annotations

from dataclasses import replace

import triton
import triton.language as tl

from saccade_kernels.gpu.classes import load_by_tag, per_head_site
from saccade_kernels.gpu.decode_pages import attend_split, fold
from saccade_kernels.gpu.key_weights import key_weights_of, weigh_rows
from saccade_kernels.gpu.merge import UNALIGNED, UNSPECIALISED, group_is_edited, split_of
from saccade_kernels.gpu.tiles import (
    LOG2E,
    MASS,
    NEVER_ATTEND,
    PAGE,
    SCORE,
    dot,
    edit_score,
    soft_cap,
)
from saccade_kernels.gpu.tuning import DecodeConfig

MOST_ROWS = 32
"""Virtual rows of a tile; further ones make further blocks."""

MOST_KEYS = 32
"""Keys of a tile; more would not fit the registers."""


@triton.jit
def attend_rows(
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
    own_at,
    classes_at,
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
    kv_head,
    stride_head,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    EMIT: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Keys ``start`` to ``end``, those before ``low`` unseen, for a tile of virtual rows.

    Where ``own_at`` says so a row's classes are its head's own, so that its keys may have any tag.
    """
    column = tl.arange(0, DP)
    is_column = column < D
    query_at = query + head[:, None] * stride_head + column[None, :]
    q = tl.load(query_at, mask=is_row[:, None] & is_column[None, :], other=0.0)
    is_own = tl.load(own_at, mask=is_row, other=0) != 0
    flags = tl.load(edits_table + site, mask=is_row, other=0).to(tl.int32)
    is_scored = (flags & SCORE) != 0
    is_apart = (flags & (SCORE | MASS)) != 0
    if EMIT:
        is_apart = is_row
    weights = key_weights_of(weight_table, site, is_scored, key_weights, tag_row, max_len)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, DP], tl.float32)
    # One iteration ahead, or the loads of the next tile could not start before this one's end.
    page = tl.load(pages_at + start // PAGE)
    position = start + tl.arange(0, KEYS)
    next_tag = tl.load(tags_at + position, mask=position < end, other=0)
    for tile in tl.range(start, end, KEYS):
        next_page = tl.load(pages_at + tl.minimum(tile + KEYS, end - 1) // PAGE)
        position = tile + tl.arange(0, KEYS)
        inside = (position < end) & (position >= low)
        first = page.to(tl.int64) * (PAGE * KV_HEADS * D) + kv_head * D
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
        tag = next_tag.to(tl.int32)
        next_tag = tl.load(tags_at + position + KEYS, mask=position + KEYS < end, other=0)
        edited = edit_score(
            score,
            load_by_tag(scale_table, site, tag, is_scored),
            load_by_tag(absolute_table, site, tag, is_scored),
            load_by_tag(bias_table, site, tag, is_scored),
        )
        score = tl.where(is_scored[:, None], edited, score * LOG2E)
        score = weigh_rows(score, weights, is_scored, position, position < end)
        is_key = is_own[:, None] & (position < end)[None, :]
        own = tl.load(classes_at[:, None] + position[None, :], mask=is_key, other=0).to(tl.int32)
        key_class = tl.where(is_own[:, None], own, tl.where(is_apart[:, None], tag[None, :], 0))
        visible = inside[None, :] & is_row[:, None] & (key_class == row_class[:, None])
        score = tl.where(visible & (tag != NEVER_ATTEND)[None, :], score, float("-inf"))
        v_mask = inside[:, None] & is_column[None, :]
        value_at = value_cache + first + (at[:, None] + column[None, :])
        v = tl.load(value_at, mask=v_mask, other=0.0)
        top, total, out = fold(top, total, out, score, v, True, UPCAST)
        page = next_page
    tl.store(part_max + part, top, mask=is_row)
    tl.store(part_sum + part, total, mask=is_row)
    out_at = part_out + part.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(out_at, out, mask=is_row[:, None] & is_column[None, :])


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def per_head_kernel(
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
    page_words,
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
    stride_words,
    layers,
    max_len,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    VIRTUAL: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    KEYS: tl.constexpr,
    PER_HEAD_KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    EMIT: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """decode.py's kernel where some heads have classes of their own.

    Grid (blocks of virtual rows * KV_HEADS, splits, sequences): programs that share splits, as the
    other form's do, would spill registers.
    """
    kv_head = tl.program_id(0) % KV_HEADS
    block = tl.program_id(0) // KV_HEADS
    sequence = tl.program_id(2)
    context = tl.load(context_lens + sequence)
    first, length = split_of(context, window, SPLIT, MAX_SPLITS)
    low = tl.where(window > 0, context - window, 0)
    heads: tl.constexpr = KV_HEADS * GROUP
    split = tl.program_id(1)
    if split >= tl.cdiv(context - first, length):
        return
    start = first + split * length
    end = tl.minimum(start + length, context)
    tag_row = tl.load(tag_rows + sequence).to(tl.int64)
    site = (tl.load(control_rows + sequence) * layers + layer) * heads
    is_edited = True
    if not EMIT:
        group = edits_table + site + kv_head * GROUP
        is_edited = group_is_edited(group, hides + tag_row, GROUP, ROWS)
    member = tl.arange(0, ROWS)
    member = kv_head * GROUP + tl.minimum(member, GROUP - 1)
    of_group = per_head_site(per_head_rows, tag_row, layer, layers, heads, member)
    has_own = tl.max(tl.load(per_head_heads + of_group).to(tl.int32), 0) != 0
    own_query = query + sequence * stride_token
    own_pages = page_table + sequence * stride_pages
    own_tags = tags + (tag_row * layers + layer) * max_len
    if is_edited & has_own:
        row = block * VIRTUAL + tl.arange(0, VIRTUAL)
        head = kv_head * GROUP + tl.minimum(row // C, GROUP - 1)
        own_site = per_head_site(per_head_rows, tag_row, layer, layers, heads, head)
        part = ((sequence * heads + head) * splits + split) * C + row % C
        attend_rows(
            own_query, key_cache, value_cache, own_pages, site + head,
            scale_table, absolute_table, bias_table, weight_table, edits_table,
            own_tags, key_weights, tag_row, max_len,
            per_head_heads + own_site, per_head_classes + own_site * max_len,
            part_max, part_sum, part_out, part, scale, cap, head, row % C, row < GROUP * C,
            start, end, low, kv_head, stride_head,
            KV_HEADS, D, DP, VIRTUAL, PER_HEAD_KEYS, EMIT, CAPPED, UPCAST,
        )  # fmt: skip
    elif block == 0:
        attend_split(
            own_query, key_cache, value_cache, own_pages,
            page_words + (sequence * layers + layer).to(tl.int64) * stride_words,
            own_tags, key_weights, tag_row, max_len,
            site, scale_table, absolute_table, bias_table, weight_table,
            part_max, part_sum, part_out, sequence * heads, splits, split, scale, cap,
            start, end, context, low, is_edited, kv_head, stride_head,
            GROUP, ROWS, KV_HEADS, D, DP, C, KEYS, True, CAPPED, UPCAST,
        )  # fmt: skip


def per_head_config(config: DecodeConfig) -> DecodeConfig:
    """How to launch this form, so that it fits the registers."""
    return replace(config, num_stages=min(2, config.num_stages), max_registers=255)


def per_head_shape(constants: dict[str, int], classes: int, config: DecodeConfig) -> dict[str, int]:
    """Sizes that this form is compiled for beside those of the other; classes a power of two."""
    power = triton.next_power_of_2
    virtual = max(16, power(constants["GROUP"] * power(classes)))
    rows = min(MOST_ROWS, virtual)
    keys = min(MOST_KEYS, config.block_keys)
    sizes = {"C": power(classes), "VIRTUAL": rows, "PER_HEAD_KEYS": keys}
    return sizes | {"BLOCKS": virtual // rows}
