"""Triton kernels of saliency.py, first half: what it needs to know about each key class.

A class's part of the formulas in gradients.py is its mass and its mean output O_c, because
``g_c = gain * (dL/do' . O_c)``; so the pass over the keys does not depend on the losses. Its tiles
have virtual rows (query head of the group, key class), and a row sees the keys of its class only.
"""

import triton
import triton.language as tl

from saccade_kernels.gpu.classes import (
    load_by_tag,
    per_head_site,
)
from saccade_kernels.gpu.key_weights import key_weights_of, weigh_rows
from saccade_kernels.gpu.tiles import (
    GATES,
    LARGEST_RATIO,
    LOG2E,
    NEVER_ATTEND,
    PAGE,
    WIDTH,
    class_ratios,
    dot,
    edit_score,
    soft_cap,
)

UNSPECIALISED = [
    "layer",
    "window",
    "losses",
    "splits",
    "max_pages",
    "stride_token",
    "stride_head",
    "stride_pages",
    "layers",
    "max_len",
]
"""Integers whose value must not choose another compiled kernel while serving."""

UNALIGNED = ["context_lens", "page_table", "control_rows", "tag_rows"]
"""Tensors that may be views into others; nor must their alignment."""


@triton.jit
def seen_pages(context, window, split, SPLIT: tl.constexpr):
    """The first key the row sees, and the pages [begin, end) of a split that it sees."""
    low = 0
    if window > 0:
        low = tl.maximum(context - window, 0)
    begin = tl.maximum(split * (SPLIT // PAGE), low // PAGE)
    end = tl.minimum((split + 1) * (SPLIT // PAGE), tl.cdiv(context, PAGE))
    return low, begin, end


@triton.jit
def seen_splits(context, window, SPLIT: tl.constexpr):
    """The splits [begin, end) in which the row sees a key; none for padding."""
    begin = 0
    if window > 0:
        begin = tl.maximum(context - window, 0) // SPLIT
    return begin, tl.cdiv(context, SPLIT)


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def class_kernel(
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
    tags,
    key_weights,
    per_head_rows,
    per_head_heads,
    per_head_classes,
    scores,
    slopes,
    part_max,
    part_sum,
    part_out,
    scale,
    cap,
    layer,
    window,
    splits,
    max_pages,
    stride_token,
    stride_head,
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
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One split of one sequence for one tile of virtual rows of one key head.

    Grid (splits, KV_HEADS * tiles of ROWS rows, sequences). Partials are [sequence, head, split,
    class]; scores (base 2) and slopes [sequence, head, max_pages, PAGE], written for seen keys.
    """
    split = tl.program_id(0)
    kv_head = tl.program_id(1) % KV_HEADS
    sequence = tl.program_id(2)
    context = tl.load(context_lens + sequence)
    low, begin, end = seen_pages(context, window, split, SPLIT)
    if begin >= end:
        return

    row = tl.program_id(1) // KV_HEADS * ROWS + tl.arange(0, ROWS)
    row_class = row % C
    is_row = row < GROUP * C
    head = kv_head * GROUP + tl.minimum(row // C, GROUP - 1)
    column = tl.arange(0, DP)
    is_column = column < D
    query_at = query + sequence * stride_token + head[:, None] * stride_head + column[None, :]
    q = tl.load(query_at, mask=is_row[:, None] & is_column[None, :], other=0.0)
    score_at = (sequence * (KV_HEADS * GROUP) + head).to(tl.int64) * max_pages
    if EDITED:
        tag_row = tl.load(tag_rows + sequence).to(tl.int64)
        tags_at = tags + (tag_row * layers + layer) * max_len
        site = (tl.load(control_rows + sequence) * layers + layer) * (KV_HEADS * GROUP) + head
        if PER_HEAD:  # the keys of a row may have any tag
            own_site = per_head_site(per_head_rows, tag_row, layer, layers, KV_HEADS * GROUP, head)
            is_own = (tl.load(per_head_heads + own_site) != 0)[:, None]
            own_at = (per_head_classes + own_site * max_len)[:, None]
        else:
            entry = site * WIDTH + row_class
            row_scale = tl.load(scale_table + entry, mask=is_row, other=0.0)[:, None]
            row_absolute = tl.load(absolute_table + entry, mask=is_row, other=0.0)[:, None]
            row_bias = tl.load(bias_table + entry, mask=is_row, other=0.0)[:, None]
        weights = key_weights_of(weight_table, site, is_row, key_weights, tag_row, max_len)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, DP], tl.float32)
    slot = tl.arange(0, PAGE)
    pages_at = page_table + sequence * stride_pages
    # One iteration ahead, or the loads of the next tile could not start before this one's end.
    page = tl.load(pages_at + begin)
    for tile in tl.range(begin, end):
        next_page = tl.load(pages_at + tl.minimum(tile + 1, end - 1))
        position = tile * PAGE + slot
        inside = (position >= low) & (position < context)
        at = (page.to(tl.int64) * PAGE + slot) * (KV_HEADS * D) + kv_head * D
        k_mask = inside[None, :] & is_column[:, None]
        k = tl.load(key_cache + at[None, :] + column[:, None], mask=k_mask, other=0.0)
        score = dot(q, k, UPCAST) * scale
        visible = inside[None, :] & is_row[:, None]
        if CAPPED:
            score = soft_cap(score, cap)
            slope = 1 - (score / cap) * (score / cap)
        if EDITED:
            tag = tl.load(tags_at + position, mask=inside, other=NEVER_ATTEND).to(tl.int32)
            if PER_HEAD:
                row_scale = load_by_tag(scale_table, site, tag, is_row)
                row_absolute = load_by_tag(absolute_table, site, tag, is_row)
                row_bias = load_by_tag(bias_table, site, tag, is_row)
            sign = tl.where(score > 0, 1.0, tl.where(score < 0, -1.0, 0.0))
            if CAPPED:
                slope = slope * (1 + row_scale + row_absolute * sign)
            else:
                slope = 1 + row_scale + row_absolute * sign
            score = edit_score(score, row_scale, row_absolute, row_bias)
            score = weigh_rows(score, weights, is_row, position, inside)
            seen_class = tl.where(tag == NEVER_ATTEND, -1, tag)
            if PER_HEAD:
                own_mask = is_own & (inside & (tag != NEVER_ATTEND))[None, :]
                own = tl.load(own_at + position[None, :], mask=own_mask, other=255).to(tl.int32)
                visible = visible & (tl.where(is_own, own, seen_class) == row_class[:, None])
            else:
                visible = visible & (seen_class[None, :] == row_class[:, None])
        else:
            score = score * LOG2E
        to = (score_at + tile)[:, None] * PAGE + slot[None, :]
        tl.store(scores + to, score, mask=visible)
        if EDITED or CAPPED:
            tl.store(slopes + to, slope, mask=visible)
        score = tl.where(visible, score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # no key of this class so far
        p = tl.exp2(score - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        v_mask = inside[:, None] & is_column[None, :]
        v = tl.load(value_cache + at[:, None] + column[None, :], mask=v_mask, other=0.0)
        out = out * shrink[:, None] + dot(p.to(v.dtype), v, UPCAST)
        top = new_top
        page = next_page

    part = ((sequence * (KV_HEADS * GROUP) + head) * splits + split) * C + row_class
    tl.store(part_max + part, top, mask=is_row)
    tl.store(part_sum + part, total, mask=is_row)
    out_at = part_out + part.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(out_at, out, mask=is_row[:, None] & is_column[None, :])


@triton.jit
def mass_jacobian(mass, site, transform, gate_weight, gate_threshold, C: tl.constexpr):
    """dm'_c / dm_d, [C, C], of class masses [C] under one program; see gradients.py."""
    klass = tl.arange(0, C)
    matrix = tl.load(transform + site * WIDTH * WIDTH + klass[:, None] * WIDTH + klass[None, :])
    after = tl.sum(matrix * mass[None, :], 1)
    closed = 0
    for gate in tl.static_range(GATES):
        weights = tl.load(gate_weight + (site * GATES + gate) * WIDTH + klass)
        threshold = tl.load(gate_threshold + site * GATES + gate)
        closed += (tl.sum(mass * weights, 0) < threshold).to(tl.int32)
    empty = after > mass * LARGEST_RATIO
    lost = tl.sum(tl.where(empty, after, 0.0), 0)
    kept = tl.sum(tl.where(empty, 0.0, after), 0)
    divisor = tl.where(kept > 0, kept, float("inf"))
    lost_by = tl.sum(tl.where(empty[:, None], matrix, 0.0), 0)
    kept_by = tl.sum(tl.where(empty[:, None], 0.0, matrix), 0)
    returned_by = lost_by / divisor - lost / divisor * (kept_by / divisor)
    changed = matrix * (1 + lost / divisor) + after[:, None] * returned_by[None, :]
    stuck = (kept <= 0) & (lost > 0)
    kept_mass = empty.to(tl.int32) + closed + stuck.to(tl.int32) > 0
    eye = tl.where(klass[:, None] == klass[None, :], 1.0, 0.0)
    return tl.where(kept_mass[:, None], eye, changed)


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def offset_kernel(
    part_max,
    part_sum,
    part_out,
    grad_output,
    context_lens,
    control_rows,
    transform_table,
    gate_weight_table,
    gate_threshold_table,
    gain_table,
    tops,
    factors,
    offsets,
    layer,
    window,
    losses,
    splits,
    layers,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    SPLIT: tl.constexpr,
    LOSSES: tl.constexpr,
    EDITED: tl.constexpr,
):
    """Largest score, factors and offsets of one head. Grid (HEADS, sequences).

    tops is [sequence, head], factors [sequence, head, class] and offsets [sequence, loss, head,
    class]. The latter two are divided by the sum of exponentiated scores, so that A_j need not be.
    """
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    context = tl.load(context_lens + sequence)
    begin, end = seen_splits(context, window, SPLIT)
    klass = tl.arange(0, C)
    column = tl.arange(0, DP)
    is_column = column < D

    top = tl.full([C], float("-inf"), tl.float32)
    total = tl.zeros([C], tl.float32)
    out = tl.zeros([C, DP], tl.float32)
    for split in tl.range(begin, end):
        part = ((sequence * HEADS + head) * splits + split) * C + klass
        peak = tl.load(part_max + part)
        new_top = tl.maximum(top, peak)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink = tl.exp2(top - base)
        share = tl.exp2(peak - base)
        total = total * shrink + share * tl.load(part_sum + part)
        out_at = part_out + part.to(tl.int64)[:, None] * D + column[None, :]
        piece = tl.load(out_at, mask=is_column[None, :], other=0.0)
        out = out * shrink[:, None] + share[:, None] * piece
        top = new_top
    highest = tl.max(top, 0)
    base = tl.where(highest == float("-inf"), 0.0, highest)  # nothing is visible
    mean = out / tl.where(total > 0, total, 1.0)[:, None]  # O_c
    total = total * tl.exp2(top - base)
    whole = tl.sum(total, 0)
    whole = tl.where(whole > 0, whole, 1.0)
    mass = total / whole
    tl.store(tops + sequence * HEADS + head, base)

    loss = tl.arange(0, LOSSES)
    is_loss = loss < losses
    row = (sequence * losses + loss) * HEADS + head
    grad_at = grad_output + row.to(tl.int64)[:, None] * D + column[None, :]
    grad = tl.load(grad_at, mask=is_loss[:, None] & is_column[None, :], other=0.0)
    grad = tl.dot(grad.to(tl.float32), tl.trans(mean), input_precision="ieee")  # g_c, [LOSSES, C]
    factor = tl.full([C], 1.0, tl.float32)
    onward = grad
    if EDITED:
        site = (tl.load(control_rows + sequence) * layers + layer) * HEADS + head
        gain = tl.load(gain_table + site)
        grad = grad * gain
        ratio = class_ratios(
            mass[None, :], site, transform_table, gate_weight_table, gate_threshold_table, C
        )
        jacobian = mass_jacobian(
            mass, site, transform_table, gate_weight_table, gate_threshold_table, C
        )
        onward = tl.sum(grad[:, :, None] * jacobian[None, :, :], 1)  # h_d
        grad = grad * ratio
        factor = tl.reshape(ratio, [C]) * gain
    offset = onward - grad - tl.sum(mass[None, :] * onward, 1)[:, None]
    tl.store(factors + (sequence * HEADS + head) * C + klass, factor / whole)
    offset_at = offsets + row[:, None] * C + klass[None, :]
    tl.store(offset_at, offset / whole, mask=is_loss[:, None])
