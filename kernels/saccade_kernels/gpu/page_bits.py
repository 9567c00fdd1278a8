"""A split's view of its pages' words: which pages have a class, as the bits of two integers.

    words of the pages from ``first`` on   [whole 0]  [whole 0]  [0, 3]  [whole 1]  [1, 3]
    bits of class 0, without a mask        1          1          .       .          .
    bits of class 0, masked                .          .          1       .          .

A loop over pages takes the lowest bit that is set, and clears it. Words are read once a split and
chunk of pages, two bytes a page; a reduction makes the bits of a class.
"""

from __future__ import annotations

import triton
import triton.language as tl

from saccade_kernels.gpu.page_classes import WHOLE
from saccade_kernels.gpu.tiles import PAGE, WIDTH

WORDS = tl.constexpr(32)
CHUNK = tl.constexpr(31)
"""Pages that are looked at together: a bit each of an integer that stays positive."""


@triton.jit
def lowest(bits):
    """Number of the lowest bit that is set, by the exponent of a float; 0 if none is."""
    exponent = (bits & -bits).to(tl.float32).to(tl.int32, bitcast=True) >> 23
    return tl.maximum(exponent - 127, 0)


@triton.jit
def count_bits(bits):
    """How many of 31 bits are set."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    bits = bits + (bits >> 8)
    return (bits + (bits >> 16)) & 63


@triton.jit
def classes_of(tag, is_key):
    """Bits of the classes that some of these keys have."""
    is_key = is_key & (tag < WIDTH)
    return tl.reduce_or(tl.where(is_key, 1 << tl.minimum(tag, WIDTH), 0), 0)


@triton.jit
def load_words(words_at, first, last, filling, filled, low, is_edited):
    """Words of CHUNK pages at most, from ``first`` to ``last``, as the split's row sees them.

    filling, filled: the page of the newest key, and bits of the classes that it has. Where nothing
    is edited all keys are of class 0.
    """
    page = first + tl.arange(0, WORDS)
    last = tl.minimum(last, first + CHUNK)
    listed = tl.where(is_edited, tl.minimum(last, filling), 0)
    word = tl.load(words_at + page, mask=page < listed, other=0).to(tl.int32)
    word = tl.where(page == filling, filled, tl.where(is_edited, word, WHOLE + 1))
    word = tl.where(low > page * PAGE, word & (WHOLE - 1), word)
    return tl.where(page < last, word, 0)


@triton.jit
def bits_of(word, klass, is_bent):
    """Pages that have a class: bits of those that need no mask, and of those that do."""
    has = (word >> klass) & 1
    whole = tl.where(is_bent, 0, (word >= WHOLE).to(tl.int32) & has)
    lane = tl.arange(0, WORDS)
    return tl.sum(whole << lane, 0), tl.sum((has ^ whole) << lane, 0)
