"""Key classes in a tile: which class each key has, and what its rows have of each class."""

import triton
import triton.language as tl

from saccade_kernels.gpu.tiles import WIDTH, edit_score

CLASSES = tl.constexpr(16)
"""Classes, as many as a product of matrices needs."""

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
def load_program(site, mask, scale_table, absolute_table, bias_table):
    """Score edits of a tile's rows: three [rows, CLASSES] tables, finite."""
    klass = tl.arange(0, CLASSES)
    entry = site[:, None] * WIDTH + klass[None, :]
    is_entry = mask[:, None] & (klass < WIDTH)[None, :]
    by_scale = tl.load(scale_table + entry, mask=is_entry, other=0.0)
    absolute = tl.load(absolute_table + entry, mask=is_entry, other=0.0)
    bias = tl.maximum(tl.load(bias_table + entry, mask=is_entry, other=0.0), LOWEST_BIAS)
    return by_scale, absolute, bias


@triton.jit
def edit_tile(score, program, tag):
    """Edited scores (base 2) of a tile, given :func:`load_program`'s tables of its rows."""
    by_scale, absolute, bias = program
    members = one_hot(tag, CLASSES)
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
