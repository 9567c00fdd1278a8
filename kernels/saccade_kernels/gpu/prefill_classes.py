"""The keys of one class, as the edited prefills walk them: whole pages first, gathered keys behind.

A pair (prefill_blocks.py) of an edited form is what a run of query rows has of one *tile*: BLOCK_M
positions from a multiple of BLOCK_M on, row r of the tile at the r-th of them, wherever a chunk or
a run was cut. What lies before the page of the tile's start is final for all its rows, with its
tags. So of a class (page_lists.py) a tile takes, in this order:

    whole pages before that page     KEYS keys a step, nothing masked: factor * product + bias
    loose keys before it             gathered, KEYS keys a step; their rest PAGE a step, masked
    every key of it and behind       gathered; a row sees the numbers up to its own position

    query rows, one head              keys of one class, values likewise
    +-------------------+             +---------------------------+
    | BLOCK_M x D       |    times    | KEYS x D, pages by id     |  x whole pages
    | in shared memory  |             | KEYS or PAGE x D, by slot |  x gathered tiles
    +-------------------+             +---------------------------+

A class whose edit is more than a factor above zero and a bias takes the gathered loop alone, over
every key, and so do all classes where a window cuts keys off from some row of the tile, from the
first page on that a row of it may see. What a row meets, and in which order, follows from its
position, the window, and tags up to its position: its bits do not depend on how prompts are cut.

Loops have one of three bodies. Each stands under a condition that it runs at all: see
prefill_tiles.py.

    ONLINE and VALUES    running maximum, sum and accumulator, the maximum of all classes
    ONLINE               running maximum and sum
    VALUES               the accumulator, with weights 2 ** (score - level) of a known level
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from saccade_kernels.gpu.key_weights import weigh_keys
from saccade_kernels.gpu.page_lists import LISTS as KEY_LISTS
from saccade_kernels.gpu.prefill_blocks import UNSPECIALISED as OF_BLOCKS
from saccade_kernels.gpu.prefill_tiles import finite
from saccade_kernels.gpu.tiles import LOG2E, LOWEST, PAGE, WIDTH, dot, soft_cap

LISTS = tl.constexpr(KEY_LISTS)

UNSPECIALISED = [
    *(name for name in OF_BLOCKS if name not in ("slots", "stride_pages")),
    "classes",
    "max_pages",
    "first_sequence",
]
"""Integers whose value must not choose another compiled kernel while serving."""

LARGEST_BIAS = tl.constexpr(1024.0)
"""Base 2. A larger one takes the last places of what it is added to: as if every key had it."""


class Lists(NamedTuple):
    """The lists of one class of one sequence, as pointers, and the room of each."""

    whole: Any
    keys: Any
    before: Any
    max_pages: Any


class Span(NamedTuple):
    """Pages that a tile may see, int32: [first, last), those before ``middle`` final for it."""

    first: Any
    middle: Any
    last: Any
    cut: Any  # whether a window hides keys of these pages from some row


class ClassEdit(NamedTuple):
    """The score edit of one class in one head, base 2; of products p factor * p + absolute * |p|,
    and a bias.
    """

    factor: Any
    absolute: Any
    bias: Any
    simple: Any  # whether the edit is a factor above zero and a bias, and no window cuts
    weights: Any  # KeyWeights of the head


class Heads(NamedTuple):
    """Keys and values of one key head."""

    key: Any  # pointers to the head's first slot
    value: Any
    width: Any  # elements from one slot to the next
    dims: Any  # int32 [DP]


@triton.jit
def span_of(start, limit, window, BLOCK_M: tl.constexpr):
    """The :class:`Span` of the tile at position ``start``, of whose rows none is at ``limit``."""
    start = tl.maximum(start, 0)
    cut = window < start + BLOCK_M
    first = tl.where(cut, tl.maximum(start - window + 1, 0) // PAGE, 0)
    return Span(first, start // PAGE, tl.maximum(tl.cdiv(limit, PAGE), 0), cut)


@triton.jit
def lists_of(whole, keys, before, sequence, own_class, classes, max_pages):
    """The :class:`Lists` of a class; sequences are counted from the first that has lists."""
    entry = sequence.to(tl.int64) * classes + own_class
    room = max_pages.to(tl.int64)
    return Lists(
        whole + entry * room,
        keys + entry * (LISTS * PAGE) * room,
        before + entry * (2 * (room + 1)),
        max_pages,
    )


@triton.jit
def keys_before(lists, page):
    """How many keys of the class lie before a page."""
    return tl.load(lists.before + page)


@triton.jit
def whole_before(lists, page):
    """How many whole pages of the class do."""
    return tl.load(lists.before + lists.max_pages + 1 + page)


@triton.jit
def keys_up_to(lists, positions, is_real):
    """How many keys of the class lie up to each of the positions: [n]; 0 where it is not real."""
    counts = lists.keys + (LISTS - 1) * PAGE * lists.max_pages
    return tl.load(counts + positions, mask=is_real & (positions >= 0), other=0)


@triton.jit
def class_edit(scale_table, absolute_table, bias_table, site, own_class, weights, factor, span):
    """The :class:`ClassEdit` of a pair; ``factor`` takes its products to base 2."""
    entry = site * WIDTH + own_class
    linear = 1.0 + tl.load(scale_table + entry)
    absolute = tl.load(absolute_table + entry)
    bias = tl.load(bias_table + entry) * LOG2E
    is_line = (linear > 0) & (absolute == 0) & (tl.abs(bias) <= LARGEST_BIAS)
    simple = is_line & (weights.used == 0) & (span.cut == 0)
    return ClassEdit(linear * factor, absolute * factor, bias, simple, weights)


@triton.jit
def load_heads(source, offsets, dims, D: tl.constexpr):
    """Rows [n, DP] of a cache; ``offsets`` are [n, 1] in elements."""
    if dims.shape[0] != D:
        return tl.load(source + offsets + dims[None, :], mask=(dims < D)[None, :], other=0.0)
    else:
        return tl.load(source + offsets + dims[None, :])


@triton.jit
def weigh(
    state, level, found, factor, offset, extra, place, offsets, heads,
    ONLINE: tl.constexpr, VALUES: tl.constexpr, D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Take in a tile of keys: scores are factor * found + offset, weights 2 ** -extra of theirs.

    ``place`` and ``offsets`` say where the values are: place in the cache + offsets [n, 1].
    """
    m, l, acc = state
    if ONLINE:
        top = tl.maximum(m, tl.fma(tl.max(found, 1), factor, offset))
        level = finite(top)
        rescale = tl.exp2(m - level)
        m = top
    p = tl.exp2(tl.fma(found, factor, (offset - extra - level)[:, None]))
    if ONLINE:
        l = l * rescale + tl.sum(p, 1)
    if VALUES:
        v = load_heads(heads.value + place, offsets, heads.dims, D)
        if ONLINE:
            acc = acc * rescale[:, None]
        acc += dot(p.to(v.dtype), v, UPCAST)
    return m, l, acc


@triton.jit
def products(
    rows, place, offsets, heads, D: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr
):
    """Of queries and keys, [BLOCK_M, n]; times ``base2`` they are scores."""
    k = load_heads(heads.key + place, offsets, heads.dims, D)
    found = dot(rows.q, k.T, UPCAST)
    if CAPPED:
        found = soft_cap(found * rows.scale, rows.cap)
    return found


@triton.jit
def whole_pages(
    state, level, lists, count, rows, heads, edit,
    KEYS: tl.constexpr, ONLINE: tl.constexpr, VALUES: tl.constexpr,
    D: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The first ``count`` whole pages of a class, which every row sees whole.

    KEYS is PAGE keys, or twice that: then a last page without a second is taken twice, at half
    its weight, which is exact.
    """
    n = tl.arange(0, KEYS)
    if count > 0:
        page = tl.load(lists.whole)
        second = tl.load(lists.whole + tl.minimum(1, count - 1))
        for i in tl.range(0, count, KEYS // PAGE):
            if KEYS == PAGE:
                place = page.to(tl.int64) * (PAGE * heads.width)
                extra = 0.0
            else:
                pages = tl.where(n < PAGE, page, second).to(tl.int64)
                place = (pages * (PAGE * heads.width))[:, None]
                extra = tl.where(i + 1 == count, 1.0, 0.0)
            page = tl.load(lists.whole + tl.minimum(i + KEYS // PAGE, count - 1))
            if KEYS != PAGE:
                second = tl.load(lists.whole + tl.minimum(i + 3, count - 1))
            offsets = (n % PAGE)[:, None] * heads.width
            found = products(rows, place, offsets, heads, D, CAPPED, UPCAST)
            state = weigh(
                state, level, found, edit.factor, edit.bias, extra, place, offsets, heads,
                ONLINE, VALUES, D, UPCAST,
            )  # fmt: skip
    return state


@triton.jit
def loose_keys(
    state, level, lists, count, rows, heads, edit,
    KEYS: tl.constexpr, ONLINE: tl.constexpr, VALUES: tl.constexpr,
    D: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The first ``count`` loose keys, a multiple of KEYS, which every row sees."""
    listed = lists.keys + 2 * lists.max_pages * PAGE + tl.arange(0, KEYS)
    if count > 0:
        slot = tl.load(listed)
        for start in tl.range(0, count, KEYS):
            place = slot.to(tl.int64)[:, None] * heads.width
            slot = tl.load(listed + tl.minimum(start + KEYS, count - KEYS))
            found = products(rows, place, 0, heads, D, CAPPED, UPCAST)
            state = weigh(
                state, level, found, edit.factor, edit.bias, 0.0, place, 0, heads,
                ONLINE, VALUES, D, UPCAST,
            )  # fmt: skip
    return state


@triton.jit
def gathered_keys(
    state, level, lists, first, end, low, high, rows, heads, edit,
    LOOSE: tl.constexpr, EXACT: tl.constexpr, ONLINE: tl.constexpr, VALUES: tl.constexpr,
    D: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Keys ``first`` to ``end`` of the loose ones, or of all; a row sees those below its ``high``.

    EXACT: under any edit, and but for those below a row's ``low``. A tile that goes beyond the end
    of the list repeats the last key, under numbers that no row sees.
    """
    n = tl.arange(0, PAGE)
    room = lists.max_pages * PAGE
    listed = lists.keys + (2 * room if LOOSE else 0)
    if first < end:
        slot = tl.load(listed + tl.minimum(first + n, end - 1))
        for start in tl.range(first, end, PAGE):
            place = slot.to(tl.int64)[:, None] * heads.width
            slot = tl.load(listed + tl.minimum(n + start + PAGE, end - 1))
            found = products(rows, place, 0, heads, D, CAPPED, UPCAST)
            number = (start + n)[None, :]
            seen = number < high[:, None]
            factor = edit.factor
            offset = edit.bias
            if EXACT:
                position = tl.load(listed + room + tl.minimum(start + n, end - 1))
                bias = edit.bias + weigh_keys(edit.weights, position, position >= 0)
                size = tl.fma(tl.abs(found), edit.absolute, tl.maximum(bias, LOWEST)[None, :])
                found = tl.fma(found, edit.factor, size)
                seen = seen & (number >= low[:, None])
                factor = 1.0
                offset = 0.0
            found = tl.where(seen, found, float("-inf"))
            state = weigh(
                state, level, found, factor, offset, 0.0, place, 0, heads,
                ONLINE, VALUES, D, UPCAST,
            )  # fmt: skip
    return state


@triton.jit
def one_class(
    state, level, lists, span, positions, is_real, rows, heads, edit,
    KEYS: tl.constexpr, ONLINE: tl.constexpr, VALUES: tl.constexpr,
    D: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """All keys of a class that the tile may see. Rows that are not real see what is final."""
    end = keys_before(lists, span.last)
    high = keys_up_to(lists, positions, is_real)
    if edit.simple:
        middle = keys_before(lists, span.middle)
        whole = whole_before(lists, span.middle)
        loose = middle - PAGE * whole
        state = whole_pages(
            state, level, lists, whole, rows, heads, edit,
            KEYS, ONLINE, VALUES, D, CAPPED, UPCAST,
        )  # fmt: skip
        full = loose // KEYS * KEYS
        state = loose_keys(
            state, level, lists, full, rows, heads, edit,
            KEYS, ONLINE, VALUES, D, CAPPED, UPCAST,
        )  # fmt: skip
        state = gathered_keys(
            state, level, lists, full, loose, high, tl.full(high.shape, loose, tl.int32),
            rows, heads, edit, True, False, ONLINE, VALUES, D, CAPPED, UPCAST,
        )  # fmt: skip
        state = gathered_keys(
            state, level, lists, middle, end, high, high,
            rows, heads, edit, False, False, ONLINE, VALUES, D, CAPPED, UPCAST,
        )  # fmt: skip
    else:
        low = keys_up_to(lists, positions - rows.window, is_real)
        first = keys_before(lists, span.first)
        state = gathered_keys(
            state, level, lists, first, end, low, high,
            rows, heads, edit, False, True, ONLINE, VALUES, D, CAPPED, UPCAST,
        )  # fmt: skip
    return state
