"""Tiles of the Triton prefill, and the passes of its edited forms over pages of keys.

A pass walks tiles [first, last) in order, one page each. It reads the next page's id while it works
on this one, so that loads can be pipelined. Each loop stands under a condition that it runs at all:
without, the assembler waits for every product of a warp group before it starts the next (the case
of no tile would write the accumulator while one may be under way). Scores are in base 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from saccade_kernels.gpu.key_weights import weigh_keys
from saccade_kernels.gpu.tiles import LOG2E, LOWEST, PAGE, WIDTH, dot, soft_cap


class Rows(NamedTuple):
    """The query rows of one program, all of one head."""

    q: Any  # [BLOCK_M, DP], zeros behind the last row
    positions: Any  # int32 [BLOCK_M]: where they are in the sequence
    window: Any  # int32: how many keys up to its own position a row sees
    limit: Any  # int32: slots of this position and later may hold anything
    scale: Any
    cap: Any  # of the scores, if CAPPED


class Cache(NamedTuple):
    """Where the keys and values of one sequence and one key head are."""

    key: Any  # pointer to the head's first slot, or a descriptor of the whole cache
    value: Any
    pages: Any  # pointer to the sequence's row of the page table
    stride: Any  # between pages
    offsets: Any  # [KEYS, DP]: of the keys of a tile inside their pages
    dims: Any  # int32 [DP]
    column: Any  # first column of the head in a descriptor


class Edit(NamedTuple):
    """The score edit of one head, base 2; and where the classes of the sequence's keys are.

    With s the products, a score becomes linear * s + absolute * |s| + bias, and what
    the weights of keys add.
    """

    linear: Any  # float32 [WIDTH], as are absolute and bias
    absolute: Any
    bias: Any
    weights: Any  # KeyWeights
    tags: Any  # pointer to the sequence's first key
    hidden: Any  # int32: tag of the keys that are out of sight, or -1
    classes: Any  # if PER_HEAD: pointer to what masses are of, the tags or the head's own


@triton.jit
def load_page(
    source, page, tile, rows, cache, D: tl.constexpr, DESCRIPTORS: tl.constexpr, CUT: tl.constexpr
):
    """Keys of one key head from page ``tile`` on, [KEYS, DP]; CUT gives zeros from the limit on.

    ``page``: a scalar, or int32 [KEYS, 1] for a tile of several pages.
    """
    present = (tl.arange(0, cache.offsets.shape[0]) + tile * PAGE)[:, None] < rows.limit
    if DESCRIPTORS:
        loaded = source.load([page * PAGE, cache.column])
        if CUT:
            loaded = tl.where(present, loaded, 0.0)
    else:
        pointers = source + page.to(tl.int64) * cache.stride + cache.offsets
        if cache.offsets.shape[1] != D:
            inside = (cache.dims < D)[None, :]
            loaded = tl.load(pointers, mask=(present & inside) if CUT else inside, other=0.0)
        elif CUT:
            loaded = tl.load(pointers, mask=present, other=0.0)
        else:
            loaded = tl.load(pointers)
    return loaded


@triton.jit
def products(
    page,
    tile,
    rows,
    cache,
    D: tl.constexpr,
    CAPPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Products of queries and keys, [BLOCK_M, PAGE]; times ``base2`` they are scores."""
    # A stale key spoils only its own column, which is masked: no need to zero it.
    k = load_page(cache.key, page, tile, rows, cache, D, DESCRIPTORS, False)
    found = dot(rows.q, k.T, UPCAST)
    if CAPPED:
        found = soft_cap(found * rows.scale, rows.cap)
    return found


@triton.jit
def base2(scale, CAPPED: tl.constexpr):
    """Factor from what ``products`` gives to scores in base 2: ``factor`` elsewhere."""
    if CAPPED:
        factor = LOG2E
    else:
        factor = scale * LOG2E
    return factor


@triton.jit
def mask_unseen(scores, n, rows):
    """Minus infinity where a query must not look; ``n`` are the keys' positions."""
    positions = rows.positions[:, None]
    seen = (n[None, :] <= positions) & (n[None, :] > positions - rows.window)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def finite(top):
    """The running maximum, or 0 for a row that has seen no key: -inf minus -inf is NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def load_edit(scale, absolute, bias, weights, site, tags, hidden, factor, classes):
    """The score edit of one head; ``site`` is (control row * layers + layer) * heads + head."""
    entries = site * WIDTH + tl.arange(0, WIDTH)
    return Edit(
        (1.0 + tl.load(scale + entries)) * factor,
        tl.load(absolute + entries) * factor,
        tl.load(bias + entries) * LOG2E,
        weights,
        tags,
        hidden,
        classes,
    )


@triton.jit
def load_tags(edit, tile, limit):
    """Classes of a page's keys, int32 [PAGE]."""
    n = tl.arange(0, PAGE) + tile * PAGE
    return tl.load(edit.tags + n, mask=n < limit, other=0).to(tl.int32)


@triton.jit
def load_classes(edit, tags, tile, limit, PER_HEAD: tl.constexpr):
    """Classes of a page's keys that masses are of, int32 [PAGE]: the tags, or the head's own."""
    if PER_HEAD:
        n = tl.arange(0, PAGE) + tile * PAGE
        classes = tl.load(edit.classes + n, mask=n < limit, other=0).to(tl.int32)
    else:
        classes = tags
    return classes


@triton.jit
def members_of(tags, COLUMNS: tl.constexpr):
    """Which class each key belongs to, bool [PAGE, COLUMNS]; a hidden key counts to the last."""
    return tl.minimum(tags, WIDTH - 1)[:, None] == tl.arange(0, COLUMNS)[None, :]


@triton.jit
def split(x, EXACT: tl.constexpr):
    """Two tensors for the tensor cores that add up to ``x``, to 16 bits at any magnitude.

    Weights of a faint class must not lose their proportions, as they would in float16.
    """
    if EXACT:
        high, low = x, tl.zeros_like(x)
    else:
        # Cutting off bits is faster than rounding, and the other half makes up for it.
        top = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
        high = top.to(tl.bfloat16)
        low = (x - top).to(tl.bfloat16)
    return high, low


@triton.jit
def edited_scores(
    page,
    tile,
    tags,
    rows,
    cache,
    edit,
    MASKED: tl.constexpr,
    D: tl.constexpr,
    CAPPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Scores after the score edit, [BLOCK_M, PAGE]; -inf only where a key is out of sight."""
    scores = products(page, tile, rows, cache, D, CAPPED, DESCRIPTORS, UPCAST)
    # Reductions, where chains of selections would do: the compiler repeats such a chain in every
    # thread for all the keys it has scores of, which costs more than the scores themselves.
    members = members_of(tags, WIDTH)
    linear = tl.sum(tl.where(members, edit.linear[None, :], 0.0), 1)
    absolute = tl.sum(tl.where(members, edit.absolute[None, :], 0.0), 1)
    n = tl.arange(0, PAGE) + tile * PAGE
    weighted = weigh_keys(edit.weights, n, n < rows.limit)
    bias = edit.bias[None, :] + weighted[:, None]
    bias = tl.where(members, tl.maximum(bias, LOWEST), 0.0)
    bias = tl.sum(tl.where((tags == edit.hidden)[:, None], float("-inf"), bias), 1)
    size = tl.fma(tl.abs(scores), absolute[None, :], bias[None, :])
    scores = tl.fma(scores, linear[None, :], size)
    if MASKED:
        scores = mask_unseen(scores, n, rows)
    return scores


@triton.jit
def score_pass(
    state,
    first,
    last,
    rows,
    cache,
    edit,
    CUT: tl.constexpr,
    D: tl.constexpr,
    CAPPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Online softmax of edited scores; ``state`` is each row's maximum, sum and accumulator."""
    m, l, acc = state
    if first < last:
        upcoming = tl.load(cache.pages + first)
        for tile in tl.range(first, last):
            page = upcoming
            upcoming = tl.load(cache.pages + tile + 1, mask=tile + 1 < last, other=0)
            tags = load_tags(edit, tile, rows.limit)
            scores = edited_scores(
                page, tile, tags, rows, cache, edit, CUT, D, CAPPED, DESCRIPTORS, UPCAST
            )
            top = tl.maximum(m, tl.max(scores, 1))
            level = finite(top)
            p = tl.exp2(scores - level[:, None])
            rescale = tl.exp2(m - level)
            v = load_page(cache.value, page, tile, rows, cache, D, DESCRIPTORS, CUT)
            l = l * rescale + tl.sum(p, 1)
            acc = acc * rescale[:, None] + dot(p.to(v.dtype), v, UPCAST)
            m = top
    return m, l, acc


@triton.jit
def class_sums(p, tags, UPCAST: tl.constexpr, EXACT: tl.constexpr):
    """Sums of weights [BLOCK_M, PAGE] over each class's keys: [BLOCK_M, 2 * WIDTH].

    The second half is zeros: a product of warp groups has at least 16 columns.
    """
    high, low = split(p, EXACT)
    members = members_of(tags, 2 * WIDTH).to(tl.float32).to(high.dtype)
    sums = dot(high, members, UPCAST)
    if not EXACT:
        sums += dot(low, members, UPCAST)
    return sums


@triton.jit
def spread(ratios, tags, UPCAST: tl.constexpr, EXACT: tl.constexpr):
    """The ratio of each key's class: [BLOCK_M, PAGE] of [BLOCK_M, WIDTH]. A ratio of 1 is exact."""
    high, low = split(ratios, EXACT)
    both = tl.reshape(tl.join(high, low), [ratios.shape[0], 2 * WIDTH])
    members = (tl.arange(0, 2 * WIDTH) // 2)[:, None] == tl.minimum(tags, WIDTH - 1)[None, :]
    return dot(both, members.to(tl.float32).to(both.dtype), UPCAST)


@triton.jit
def mass_pass(
    m,
    sums,
    first,
    last,
    rows,
    cache,
    edit,
    CUT: tl.constexpr,
    D: tl.constexpr,
    CAPPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    UPCAST: tl.constexpr,
    PER_HEAD: tl.constexpr,
):
    """Each row's maximum, and ``class_sums`` of all tiles."""
    if first < last:
        upcoming = tl.load(cache.pages + first)
        for tile in tl.range(first, last):
            page = upcoming
            upcoming = tl.load(cache.pages + tile + 1, mask=tile + 1 < last, other=0)
            tags = load_tags(edit, tile, rows.limit)
            scores = edited_scores(
                page, tile, tags, rows, cache, edit, CUT, D, CAPPED, DESCRIPTORS, UPCAST
            )
            top = tl.maximum(m, tl.max(scores, 1))
            level = finite(top)
            p = tl.exp2(scores - level[:, None])
            rescale = tl.exp2(m - level)
            classes = load_classes(edit, tags, tile, rows.limit, PER_HEAD)
            found = class_sums(p, classes, UPCAST, rows.q.dtype == tl.float32)
            sums = sums * rescale[:, None] + found
            m = top
    return m, sums


@triton.jit
def value_pass(
    acc,
    m,
    ratios,
    first,
    last,
    rows,
    cache,
    edit,
    CUT: tl.constexpr,
    D: tl.constexpr,
    CAPPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    UPCAST: tl.constexpr,
    PER_HEAD: tl.constexpr,
):
    """Values under weights that are multiplied with their class's entry of ``ratios``."""
    level = finite(m)
    if first < last:
        upcoming = tl.load(cache.pages + first)
        for tile in tl.range(first, last):
            page = upcoming
            upcoming = tl.load(cache.pages + tile + 1, mask=tile + 1 < last, other=0)
            tags = load_tags(edit, tile, rows.limit)
            scores = edited_scores(
                page, tile, tags, rows, cache, edit, CUT, D, CAPPED, DESCRIPTORS, UPCAST
            )
            p = tl.exp2(scores - level[:, None])
            classes = load_classes(edit, tags, tile, rows.limit, PER_HEAD)
            ratio = spread(ratios, classes, UPCAST, rows.q.dtype == tl.float32)
            v = load_page(cache.value, page, tile, rows, cache, D, DESCRIPTORS, CUT)
            acc += dot((p * ratio).to(v.dtype), v, UPCAST)
    return acc
