"""The loops of the Triton decode: query heads of a key head against the pages of one split.

A split goes through its keys class by class, and through the pages of a class in this order:

    pages of the split     0      1      2      3      4      5 (being filled)
    word (page_classes)    w0     w0     0,3    w1     1,3    0,1  from its tags
    class 0                whole  whole  masked               masked
    class 1                                     whole  masked masked
    class 3                              masked        masked

The page that is being filled, and one that a window cuts, are masked; so are all pages of a class
whose scores are more than a line (an edit by their size, weights of keys). Scores are one fused
multiply-add, by the edit's factor and bias of the class. A split without edits is the same with
all pages of class 0: an edited form gives its plain heads the bits of the plain form.

Tiles: ROWS (16, or the group if it is larger) query heads x KEYS keys. A visit reads KEYS keys and
values, 4 * KEYS * D bytes in half precision, from the cache of L2 if it is not the page's first,
and has 4 * KEYS * D products for each row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saccade_kernels.gpu.key_weights import KeyWeights, key_weights_of, weigh_rows
from saccade_kernels.gpu.page_bits import (
    CHUNK,
    bits_of,
    classes_of,
    count_bits,
    load_words,
    lowest,
)
from saccade_kernels.gpu.page_classes import WHOLE
from saccade_kernels.gpu.tiles import LOG2E, LOWEST, PAGE, WIDTH, dot, soft_cap


@triton.jit
def fold(top, total, out, score, v, GUARDED: tl.constexpr, UPCAST: tl.constexpr):
    """Maximum, sum and output of the rows with another tile of scores, base 2, and values."""
    new_top = tl.maximum(top, tl.max(score, 1))
    base = new_top
    if GUARDED:
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # no key of this class so far
    p = tl.exp2(score - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(p, 1)
    out = out * shrink[:, None] + dot(p.to(v.dtype), v, UPCAST)
    return new_top, total, out


@triton.jit
def multiply(
    q, key_cache, first, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    KEYS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Products of queries and a tile of keys; a stale key spoils its own column alone."""
    column = tl.arange(0, DP)[:, None]
    at = key_cache + first + (tl.arange(0, KEYS)[None, :] * (KV_HEADS * D) + column)
    if DP == D:
        return dot(q, tl.load(at), UPCAST)
    else:
        return dot(q, tl.load(at, mask=column < D, other=0.0), UPCAST)


@triton.jit
def attend_whole(
    top, total, out, q, key_cache, value_cache, pages_at, bits, count, scale, cap, factor, bias,
    kv_head,
    KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, KEYS: tl.constexpr,
    LISTED: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``count`` pages all of whose keys count: those of ``bits``, or else the first ones."""
    column = tl.arange(0, DP)[None, :]
    inner = tl.arange(0, KEYS)[:, None] * (KV_HEADS * D) + column
    # One round ahead, or the loads of the next tile could not start before this one's end.
    at = 0
    if LISTED:
        at = lowest(bits)
    page = tl.load(pages_at + at, mask=count > 0, other=0)
    for tile in tl.range(0, count * (PAGE // KEYS)):
        offset = tile * KEYS - tile * KEYS // PAGE * PAGE
        first = page.to(tl.int64) * (PAGE * KV_HEADS * D) + (offset * KV_HEADS + kv_head) * D
        if LISTED:
            bits = tl.where(offset == PAGE - KEYS, bits & (bits - 1), bits)
            page = tl.load(pages_at + lowest(bits), mask=bits != 0, other=0)
        else:
            following = (tile + 1) * KEYS // PAGE
            page = tl.load(pages_at + following, mask=count > following, other=0)
        score = multiply(q, key_cache, first, KV_HEADS, D, DP, KEYS, UPCAST)
        if CAPPED:
            score = soft_cap(score * scale, cap)
        score = tl.fma(score, factor[:, None], bias[:, None])
        if DP == D:
            v = tl.load(value_cache + first + inner)
        else:
            v = tl.load(value_cache + first + inner, mask=column < D, other=0.0)
        top, total, out = fold(top, total, out, score, v, False, UPCAST)
    return top, total, out


@triton.jit
def attend_masked(
    top, total, out, q, key_cache, value_cache, pages_at, bits, scale, cap, factor, bias,
    absolute_table, weights, is_bent, tags_at, site, klass, first_key, low, context, is_edited,
    kv_head,
    GROUP: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, KEYS: tl.constexpr, EDITED: tl.constexpr, CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """The pages of ``bits``, of whose keys those of a class count that the row sees."""
    column = tl.arange(0, DP)[None, :]
    key = tl.arange(0, KEYS)
    inner = key[:, None] * (KV_HEADS * D) + column
    tagged = tl.where(is_edited, context, 0)  # without edits all keys are of class 0
    at = lowest(bits)
    page = tl.load(pages_at + at, mask=bits != 0, other=0)
    for tile in tl.range(0, count_bits(bits) * (PAGE // KEYS), num_stages=2):
        offset = tile * KEYS - tile * KEYS // PAGE * PAGE
        first = page.to(tl.int64) * (PAGE * KV_HEADS * D) + (offset * KV_HEADS + kv_head) * D
        position = first_key + at * PAGE + offset + key
        bits = tl.where(offset == PAGE - KEYS, bits & (bits - 1), bits)
        at = lowest(bits)
        page = tl.load(pages_at + at, mask=bits != 0, other=0)
        inside = (position < context) & (position >= low)
        score = multiply(q, key_cache, first, KV_HEADS, D, DP, KEYS, UPCAST)
        if CAPPED:
            score = soft_cap(score * scale, cap)
        product = score
        score = tl.fma(score, factor[:, None], bias[:, None])
        seen = inside
        if EDITED:
            tag = tl.load(tags_at + position, mask=position < tagged, other=0).to(tl.int32)
            seen = inside & (tag == klass)
            if is_bent:
                row = tl.arange(0, ROWS)  # all of this anew in each tile, for it costs registers
                rows = site + kv_head * GROUP + tl.minimum(row, GROUP - 1)
                absolute = tl.load(absolute_table + rows * WIDTH + klass) * LOG2E
                if not CAPPED:
                    absolute *= scale
                score += tl.abs(product) * absolute[:, None]
                own = KeyWeights(weights.table, rows, weights.used, weights.betas, weights.max_len)
                score = weigh_rows(score, own, row < GROUP, position, inside)
                score = tl.maximum(score, LOWEST, propagate_nan=tl.PropagateNan.ALL)
        score = tl.where(seen[None, :], score, float("-inf"))
        v_mask = inside[:, None] & (column < D)
        v = tl.load(value_cache + first + inner, mask=v_mask, other=0.0)
        top, total, out = fold(top, total, out, score, v, True, UPCAST)
    return top, total, out


@triton.jit
def attend_split(
    query, key_cache, value_cache, pages_at, words_at, tags_at, key_weights, tag_row, max_len, site,
    scale_table, absolute_table, bias_table, weight_table, part_max, part_sum, part_out, part,
    splits, split, scale, cap, start, end, context, low, is_edited, kv_head, stride_head,
    GROUP: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, C: tl.constexpr, KEYS: tl.constexpr, EDITED: tl.constexpr,
    CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Keys ``start`` to ``end``, those before ``low`` unseen, for the heads of one key head.

    Writes maximum, sum and output of the classes that are there, and -inf as the maximum of the
    others; class 0 alone if nothing is edited. ``part`` is the place of the sequence's first head.
    """
    row = tl.arange(0, ROWS)
    is_row = row < GROUP
    head = kv_head * GROUP + tl.minimum(row, GROUP - 1)
    column = tl.arange(0, DP)
    is_out = is_row[:, None] & (column < D)[None, :]
    q = tl.load(query + head[:, None] * stride_head + column[None, :], mask=is_out, other=0.0)
    parts = ((part + head) * splits + split) * C
    first_page = start // PAGE
    filling = (context - 1) // PAGE
    unit = LOG2E * scale
    if CAPPED:
        unit = LOG2E + 0.0 * scale
    factor = tl.zeros([ROWS], tl.float32) + unit
    bias = tl.zeros([ROWS], tl.float32)
    if EDITED:
        last_page = tl.cdiv(end, PAGE)
        filled = 1
        if is_edited & (filling < last_page):
            newest = filling * PAGE + tl.arange(0, PAGE)
            tag = tl.load(tags_at + newest, mask=newest < context, other=0).to(tl.int32)
            filled = classes_of(tag, (newest < context) & (newest >= low))
        known = load_words(words_at, first_page, last_page, filling, filled, low, is_edited)
        present = 0
        for first in tl.range(first_page, last_page, CHUNK, num_stages=1):
            word = load_words(words_at, first, last_page, filling, filled, low, is_edited)
            present |= tl.reduce_or(word, 0)
        present &= WHOLE - 1
        if is_edited:
            klass = tl.arange(0, C)[None, :]
            is_absent = is_row[:, None] & (((present >> klass) & 1) == 0)
            nothing = tl.full([ROWS, C], float("-inf"), tl.float32)
            tl.store(part_max + parts[:, None] + klass, nothing, mask=is_absent)
        is_scored = row < tl.where(is_edited, GROUP, 0)
        weights = key_weights_of(
            weight_table, site + head, is_scored, key_weights, tag_row, max_len
        )
        for _ in tl.range(0, count_bits(present), num_stages=1):
            klass = lowest(present)
            present &= present - 1
            entry = (site + head) * WIDTH + klass
            factor = (1.0 + tl.load(scale_table + entry, mask=is_scored, other=0.0)) * unit
            absolute = tl.load(absolute_table + entry, mask=is_scored, other=0.0)
            bias = tl.load(bias_table + entry, mask=is_scored, other=0.0)
            bias = tl.maximum(bias * LOG2E, LOWEST, propagate_nan=tl.PropagateNan.ALL)
            is_bent = (tl.max((absolute != 0).to(tl.int32), 0) != 0) | weights.used
            top = tl.full([ROWS], float("-inf"), tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            out = tl.zeros([ROWS, DP], tl.float32)
            word = known
            for first in tl.range(first_page, last_page, CHUNK, num_stages=1):
                whole, masked = bits_of(word, klass, is_bent)
                top, total, out = attend_whole(
                    top, total, out, q, key_cache, value_cache, pages_at + first, whole,
                    count_bits(whole), scale, cap, factor, bias, kv_head,
                    KV_HEADS, D, DP, KEYS, True, CAPPED, UPCAST,
                )  # fmt: skip
                top, total, out = attend_masked(
                    top, total, out, q, key_cache, value_cache, pages_at + first, masked, scale,
                    cap, factor, bias, absolute_table, weights, is_bent, tags_at, site, klass,
                    first * PAGE, low, context, is_edited, kv_head,
                    GROUP, ROWS, KV_HEADS, D, DP, KEYS, True, CAPPED, UPCAST,
                )  # fmt: skip
                following = first + CHUNK
                word = load_words(words_at, following, last_page, filling, filled, low, is_edited)
            tl.store(part_max + parts + klass, top, mask=is_row)
            tl.store(part_sum + parts + klass, total, mask=is_row)
            out_at = part_out + (parts + klass).to(tl.int64)[:, None] * D + column[None, :]
            tl.store(out_at, out, mask=is_out)
    else:
        top = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        out = tl.zeros([ROWS, DP], tl.float32)
        last_page = tl.cdiv(end, PAGE)
        for first in tl.range(first_page, last_page, CHUNK, num_stages=1):
            behind = tl.minimum(last_page, first + CHUNK)
            is_cut = (low > first * PAGE).to(tl.int32)
            has_newest = ((filling >= first + is_cut) & (filling < behind)).to(tl.int32)
            top, total, out = attend_whole(
                top, total, out, q, key_cache, value_cache, pages_at + first + is_cut, 0,
                behind - first - is_cut - has_newest, scale, cap, factor, bias, kv_head,
                KV_HEADS, D, DP, KEYS, False, CAPPED, UPCAST,
            )  # fmt: skip
            masked = is_cut | (has_newest << (filling - first))
            top, total, out = attend_masked(
                top, total, out, q, key_cache, value_cache, pages_at + first, masked, scale, cap,
                factor, bias, None, None, False, None, 0, 0, first * PAGE, low, context, False,
                kv_head, GROUP, ROWS, KV_HEADS, D, DP, KEYS, False, CAPPED, UPCAST,
            )  # fmt: skip
        tl.store(part_max + parts, top, mask=is_row)
        tl.store(part_sum + parts, total, mask=is_row)
        out_at = part_out + parts.to(tl.int64)[:, None] * D + column[None, :]
        tl.store(out_at, out, mask=is_out)
