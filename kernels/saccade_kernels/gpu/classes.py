"""Key classes in a tile: which class each key has, and what its rows have of each class.

What a row has of classes and what a key is of them meet in a product of tensor cores, whose inner
side has room for 16: 8 classes, then the slots of key weights.

              classes 0 to 7          slots 0 to 3       4 that are 0
    rows      scale, or absolute      0
    rows      bias                    weight             of biases only
    keys      1 for the key's own     beta
"""

import triton
import triton.language as tl

from saccade_kernels.gpu.key_weights import KEY_WEIGHTS
from saccade_kernels.gpu.tiles import WIDTH, edit_score

CLASSES = tl.constexpr(16)
"""Classes and slots, as many as a product of matrices needs."""

LOWEST_BIAS = tl.constexpr(-2.3e38)
"""For the minus infinity that knocks a class out: finite, and still so in base 2."""


@triton.jit
def one_hot(tag, CP: tl.constexpr):
    """Which class each key of a tile has: float32 [CP, keys]; a class of CP or more has none."""
    return tl.where(tl.arange(0, CP)[:, None] == tag[None, :], 1.0, 0.0)


@triton.jit
def by_class(table, members):
    """[rows, keys]: the entry of each key's class in ``table``, finite float32 [rows, CP].

    A product with :func:`one_hot`, whose result is where the scores are: in the registers of the
    tensor cores. Three roundings of the table to tf32 make up its 24 bits, as near as none.
    """
    return tl.dot(table, members, input_precision="tf32x3")


@triton.jit
def load_program(site, mask, scale_table, absolute_table, bias_table, weight_table):
    """Score edits of a tile's rows: three [rows, CLASSES] tables, finite."""
    klass = tl.arange(0, CLASSES)
    entry = site[:, None] * WIDTH + klass[None, :]
    is_entry = mask[:, None] & (klass < WIDTH)[None, :]
    by_scale = tl.load(scale_table + entry, mask=is_entry, other=0.0)
    absolute = tl.load(absolute_table + entry, mask=is_entry, other=0.0)
    bias = tl.maximum(tl.load(bias_table + entry, mask=is_entry, other=0.0), LOWEST_BIAS)
    slot = klass - WIDTH
    entry = site[:, None] * KEY_WEIGHTS + slot[None, :]
    is_slot = mask[:, None] & ((slot >= 0) & (slot < KEY_WEIGHTS))[None, :]
    bias += tl.load(weight_table + entry, mask=is_slot, other=0.0)
    return by_scale, absolute, bias


@triton.jit
def load_members(tag, key_weights, tag_row, max_len, position, present):
    """What those tables meet: classes and betas of a tile's keys, float32 [CLASSES, keys]."""
    slot = tl.arange(0, CLASSES) - WIDTH
    at = (tag_row * KEY_WEIGHTS + slot)[:, None] * max_len + position[None, :]
    is_slot = ((slot >= 0) & (slot < KEY_WEIGHTS))[:, None] & present[None, :]
    return one_hot(tag, CLASSES) + tl.load(key_weights + at, mask=is_slot, other=0.0)


@triton.jit
def edit_tile(score, program, members):
    """Edited scores (base 2) of a tile, given both of the above."""
    by_scale, absolute, bias = program
    return edit_score(
        score,
        by_class(by_scale, members),
        by_class(absolute, members),
        by_class(bias, members),
    )


@triton.jit
def load_by_tag(table, site, tag, mask):
    """[rows, keys]: the entry of each key's tag in the rows' programs, 0 where ``mask`` is not.

    For rows whose keys may have any tag; where few rows have edits it costs next to nothing.
    """
    entry = (site * WIDTH)[:, None] + tl.minimum(tag, WIDTH - 1)[None, :]
    return tl.load(table + entry, mask=mask[:, None] & (tag >= 0)[None, :], other=0.0)


@triton.jit
def per_head_site(per_head_rows, tag_row, layer, layers, heads, head):
    """A head's place in the tables of single heads; times max_len in that of classes."""
    return (tl.load(per_head_rows + tag_row).to(tl.int64) * layers + layer) * heads + head
