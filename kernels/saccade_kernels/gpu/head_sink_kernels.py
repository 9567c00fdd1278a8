"""The Triton kernels of head_sinks.py.

A decode's keys are split over programs, which store scores, and whichever program of a key head
ends last does what needs the normaliser: weights, sums and classes. It reads four bytes a key and
head, so that it works alone hardly matters.
"""

import triton
import triton.language as tl

from saccade_kernels import controls
from saccade_kernels.gpu.classes import load_by_tag
from saccade_kernels.gpu.key_weights import key_weights_of, weigh_rows
from saccade_kernels.gpu.merge import split_of
from saccade_kernels.gpu.tiles import LOG2E, NEVER_ATTEND, PAGE, SCORE, dot, edit_score, soft_cap
from saccade_kernels.head_sinks import HeadSinkOption

SINK = tl.constexpr(controls.SINK_CLASS)
EXEMPT = tl.constexpr(controls.EXEMPT_CLASS)
RELATIVE = tl.constexpr(HeadSinkOption.RELATIVE.value)
FIRST_FOUND = tl.constexpr(HeadSinkOption.FIRST_FOUND.value)
EXEMPT_INITIAL = tl.constexpr(HeadSinkOption.EXEMPT_INITIAL.value)
ROW_ALONE = tl.constexpr(HeadSinkOption.ROW_ALONE.value)

FIND_NUMBERS = [
    "layer",
    "window",
    "width",
    "stride_token",
    "stride_head",
    "stride_pages",
    "layers",
    "max_len",
]
SETTLE_NUMBERS = ["layer", "width", "layers", "heads", "max_len"]
"""Integers whose value must not choose another compiled kernel while serving."""

FIND_VIEWS = ["rows", "context_lens", "page_table", "control_rows", "tag_rows", "scores", "parts"]
SETTLE_VIEWS = ["received", "context_lens", "tag_rows"]
"""Tensors that may be views into others; nor must their alignment."""


@triton.jit
def mean_received(sums, key, end):
    """a_k of a tile of keys, of ``end`` rows and keys."""
    rows = tl.where(key < end, end - key, 1)  # that can see the key
    return tl.div_rn(sums, rows.to(tl.float32))


@triton.jit
def judge(score, key, end, threshold, least, options, before):
    """Classes of a tile of keys, and how many sinks were found up to its end.

    ``before``: in the tiles before, counted only if the first is spared.
    """
    found = ((score > threshold) & (key < end) & (end - key >= least)).to(tl.int32)
    if (options & FIRST_FOUND) != 0:
        spared = tl.cumsum(found, 0) + before <= 1
        before += tl.sum(found, 0)
    else:
        spared = key == 0
    tag = tl.where(spared, 0, found * SINK)
    is_exempt = ((options & EXEMPT_INITIAL) != 0) & (key == 0)
    return tl.where(is_exempt, EXEMPT, tag).to(tl.uint8), before


@triton.jit
def threshold_among(threshold, keys, options):
    """What a score must exceed where there are so many keys."""
    if (options & RELATIVE) != 0:
        threshold = tl.div_rn(threshold, keys.to(tl.float32))
    return threshold


@triton.jit
def score_keys(
    query, key_cache, pages_at, site, scale_table, absolute_table, bias_table, weight_table,
    is_scored, tags_at, key_weights, tag_row, max_len, scores, tops, totals, asks, scale, cap,
    kv_head, head, start, end, low, stride_head,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    ROWS: tl.constexpr, SCORED: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Store the scores (base 2) of keys ``start`` to ``end``, and their maximum and sum.

    ``start`` is the first of a page; keys before ``low`` are out of sight. ``scores`` are where
    those of each row begin, ``tops`` and ``totals`` where its maximum and its sum go.
    """
    column = tl.arange(0, DP)
    is_column = column < D
    is_row = tl.arange(0, ROWS) < GROUP
    query_at = query + head[:, None] * stride_head + column[None, :]
    q = tl.load(query_at, mask=is_row[:, None] & is_column[None, :], other=0.0)
    if SCORED:
        weights = key_weights_of(weight_table, site, is_scored, key_weights, tag_row, max_len)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    slot = tl.arange(0, PAGE)
    page = tl.load(pages_at + start // PAGE)
    for tile in tl.range(start, end, PAGE):
        next_page = tl.load(pages_at + tl.minimum(tile + PAGE, end - 1) // PAGE)
        position = tile + slot
        inside = position < end
        at = (page.to(tl.int64) * PAGE + slot) * (KV_HEADS * D) + kv_head * D
        k_mask = inside[None, :] & is_column[:, None]
        k = tl.load(key_cache + at[None, :] + column[:, None], mask=k_mask, other=0.0)
        score = dot(q, k, UPCAST) * scale
        if CAPPED:
            score = soft_cap(score, cap)
        tag = tl.load(tags_at + position, mask=inside, other=NEVER_ATTEND).to(tl.int32)
        if SCORED:
            edited = edit_score(
                score,
                load_by_tag(scale_table, site, tag, is_scored),
                load_by_tag(absolute_table, site, tag, is_scored),
                load_by_tag(bias_table, site, tag, is_scored),
            )
            score = tl.where(is_scored[:, None], edited, score * LOG2E)
            score = weigh_rows(score, weights, is_scored, position, inside)
        else:
            score = score * LOG2E
        visible = inside & (position >= low) & (tag != NEVER_ATTEND)
        score = tl.where(visible[None, :], score, float("-inf"))
        tl.store(scores[:, None] + position[None, :], score, mask=asks[:, None] & inside[None, :])
        new_top = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # no key in sight so far
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(score - base[:, None]), 1)
        top = new_top
        page = next_page
    tl.store(tops, top, mask=asks)
    tl.store(totals, total, mask=asks)


@triton.jit
def settle_head(
    scores, parts, count, sums, counted_at, classes_at, context, first, threshold, least, options,
    SPLITS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Weights, sums and classes of a head; its scores lie from key ``first`` on in ``scores``, and
    maxima and sums of ``count`` programs in ``parts``.

    Other programs wrote them: they are read past the cache of this multiprocessor.
    """
    split = tl.arange(0, SPLITS)
    is_part = split < count
    tops = tl.load(parts + split, mask=is_part, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(parts + SPLITS + split, mask=is_part, other=0.0, cache_modifier=".cg")
    top = tl.max(tops, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(totals * tl.exp2(tops - base), 0)
    normaliser = base + tl.log2(tl.where(total > 0, total, 1.0))

    counted = tl.load(counted_at)
    is_new = (counted == context - 1) | (context == 1)
    old = tl.where(is_new, context - 1, context)  # keys that have a sum
    by_row = (options & ROW_ALONE) != 0
    least = tl.where(by_row, 0, least)
    before = 0
    for begin in tl.range(0, context, KEYS):
        key = begin + tl.arange(0, KEYS)
        is_key = key < context
        is_seen = is_key & (key >= first)
        score = tl.load(scores + key, mask=is_seen, other=float("-inf"), cache_modifier=".cg")
        weight = tl.exp2(tl.minimum(score - normaliser, 0.0))
        so_far = tl.load(sums + key, mask=key < old, other=0.0) + tl.where(is_new, weight, 0.0)
        tl.debug_barrier()  # a sum is read before any thread writes it
        tl.store(sums + key, so_far, mask=is_key & is_new)
        judged = tl.where(by_row, weight, mean_received(so_far, key, context))
        tag, before = judge(judged, key, context, threshold, least, options, before)
        tl.store(classes_at + key, tag, mask=is_key)
    tl.debug_barrier()  # likewise, by all threads
    tl.store(counted_at, context, mask=is_new)


@triton.jit(do_not_specialize=FIND_NUMBERS, do_not_specialize_on_alignment=FIND_VIEWS)
def find_kernel(
    query, key_cache, rows, context_lens, page_table, control_rows, tag_rows,
    scale_table, absolute_table, bias_table, weight_table, edits_table, tags, key_weights,
    per_head_rows, per_head_classes, thresholds, options, least_rows, places, counted, sums,
    arrived, scores, parts, scale, cap, layer, window, width,
    stride_token, stride_head, stride_pages, layers, max_len,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
    SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One share of the keys of one key head, for the heads of its group that ask.

    Grid (KV_HEADS, MAX_SPLITS, rows that may ask). scores is [row, head, width], parts
    [row, head, 2, MAX_SPLITS].
    """
    heads: tl.constexpr = KV_HEADS * GROUP
    kv_head, split, index = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = tl.load(rows + index)
    if sequence < 0:
        return
    context = tl.load(context_lens + sequence)
    first, length = split_of(context, window, SPLIT, MAX_SPLITS)
    count = tl.cdiv(context - first, length)
    if split >= count:
        return
    tag_row = tl.load(tag_rows + sequence).to(tl.int64)
    own = tl.load(per_head_rows + tag_row).to(tl.int64)
    own_site = (own * layers + layer) * heads + kv_head * GROUP
    member = tl.arange(0, ROWS)
    is_row = member < GROUP
    asks = tl.load(places + own_site + member, mask=is_row, other=-1) >= 0
    if tl.max(asks.to(tl.int32), 0) == 0:
        return

    head = kv_head * GROUP + tl.minimum(member, GROUP - 1)
    site = (tl.load(control_rows + sequence) * layers + layer) * heads + head
    flags = tl.load(edits_table + site, mask=is_row, other=0).to(tl.int32)
    is_scored = asks & ((flags & SCORE) != 0)
    start = first + split * length
    end = tl.minimum(start + length, context)
    low = 0
    if window > 0:
        low = context - window
    own_query = query + sequence.to(tl.int64) * stride_token
    own_pages = page_table + sequence * stride_pages
    own_tags = tags + (tag_row * layers + layer) * max_len
    own_scores = scores + (index * heads + head).to(tl.int64) * width
    own_parts = parts + (index * heads + head) * (2 * MAX_SPLITS) + split
    if tl.max(is_scored.to(tl.int32), 0) != 0:
        score_keys(
            own_query, key_cache, own_pages, site, scale_table, absolute_table, bias_table,
            weight_table, is_scored, own_tags, key_weights, tag_row, max_len, own_scores,
            own_parts, own_parts + MAX_SPLITS, asks, scale, cap, kv_head, head, start, end, low,
            stride_head,
            GROUP, KV_HEADS, D, DP, ROWS, True, CAPPED, UPCAST,
        )  # fmt: skip
    else:
        score_keys(
            own_query, key_cache, own_pages, site, scale_table, absolute_table, bias_table,
            weight_table, is_scored, own_tags, key_weights, tag_row, max_len, own_scores,
            own_parts, own_parts + MAX_SPLITS, asks, scale, cap, kv_head, head, start, end, low,
            stride_head,
            GROUP, KV_HEADS, D, DP, ROWS, False, CAPPED, UPCAST,
        )  # fmt: skip

    tl.debug_barrier()  # all threads' scores are written before the program says that it is done
    arrivals = arrived + own * heads + kv_head
    if tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") == count - 1:
        tl.store(arrivals, 0)
        own_options = tl.load(options + own)
        threshold = threshold_among(tl.load(thresholds + own), context, own_options)
        least = tl.load(least_rows + own)
        for one in tl.range(GROUP):
            place = tl.load(places + own_site + one)
            if place >= 0:
                row = (index * heads + kv_head * GROUP + one).to(tl.int64)
                settle_head(
                    scores + row * width, parts + row * (2 * MAX_SPLITS), count, sums + place,
                    counted + own_site + one, per_head_classes + (own_site + one) * max_len,
                    context, first, threshold, least, own_options, MAX_SPLITS, KEYS,
                )  # fmt: skip


@triton.jit(do_not_specialize=SETTLE_NUMBERS, do_not_specialize_on_alignment=SETTLE_VIEWS)
def settle_prompts_kernel(
    received, context_lens, tag_rows, per_head_rows, per_head_classes, thresholds, options,
    places, counted, sums, layer, width, layers, heads, max_len, KEYS: tl.constexpr,
):  # fmt: skip
    """The keys of one head of one prompt. Grid (heads, sequences); received is [.., .., width]."""
    head, sequence = tl.program_id(0), tl.program_id(1)
    context = tl.load(context_lens + sequence)
    own = tl.load(per_head_rows + tl.load(tag_rows + sequence)).to(tl.int64)
    site = (own * layers + layer) * heads + head
    place = tl.load(places + site)
    if place < 0:
        return
    own_received = received + (sequence * heads + head).to(tl.int64) * width
    own_options = tl.load(options + own)
    threshold = threshold_among(tl.load(thresholds + own), context, own_options)
    before = 0
    for begin in tl.range(0, context, KEYS):
        key = begin + tl.arange(0, KEYS)
        is_key = key < context
        so_far = tl.load(own_received + key, mask=is_key, other=0.0)
        tl.store(sums + place + key, so_far, mask=is_key)
        mean = mean_received(so_far, key, context)
        tag, before = judge(mean, key, context, threshold, 1, own_options, before)
        tl.store(per_head_classes + site * max_len + key, tag, mask=is_key)
    tl.store(counted + site, context)
