"""Spreads what a tile's rows have of each key class over the tile's keys."""

import triton
import triton.language as tl


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
