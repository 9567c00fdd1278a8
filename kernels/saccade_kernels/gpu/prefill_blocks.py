"""What every prefill kernel begins and ends with: its block of query rows, their keys, the output.

A program takes one block of the work list (blocks.py) and one query head, a *pair*. A step runs one
launch for its plain pairs and others for its edited ones, all over lists that may have both: a
program that finds its pair on the other side ends at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from saccade_kernels.gpu.blocks import FIELDS as BLOCK_FIELDS
from saccade_kernels.gpu.classes import per_head_site
from saccade_kernels.gpu.prefill_tiles import Cache, Rows
from saccade_kernels.gpu.tiles import HEAD, MASS, PAGE, SCORE

FIELDS = tl.constexpr(BLOCK_FIELDS)

UNSPECIALISED = [
    "layer",
    "window",
    "slots",
    "stride_token",
    "stride_head",
    "stride_pages",
    "layers",
    "max_len",
]
"""Integers whose value must not choose another compiled kernel while serving."""

UNALIGNED = ["page_table", "tag_rows", "masses", "lse"]
"""Tensors that may lie anywhere inside a larger one; nor must the place they have there."""


class Block(NamedTuple):
    """One entry of the work list; all int32."""

    sequence: Any
    first_row: Any  # of the prefills' query rows
    count: Any  # rows
    position: Any  # of the first one in its sequence
    control_row: Any
    hides: Any  # keys tagged NEVER_ATTEND are out of sight


@triton.jit
def load_block(blocks, number):
    """Entry ``number`` of the work list."""
    at = blocks + number * FIELDS
    return Block(
        tl.load(at),
        tl.load(at + 1),
        tl.load(at + 2),
        tl.load(at + 3),
        tl.load(at + 4),
        tl.load(at + 5),
    )


@triton.jit
def site_of(block, layer, layers, head, HEADS: tl.constexpr):
    """Index of the pair in the control tables, int64 of [control row, layer, head]."""
    return (block.control_row.to(tl.int64) * layers + layer) * HEADS + head


@triton.jit
def is_edited(block, flags):
    """Whether a pair takes an edited form: its scores or masses change, or keys are hidden.

    What is done to a head's output any form does; ``flags`` are the pair's entry of the tables.
    """
    return ((flags & (SCORE | MASS)) != 0) | (block.hides != 0)


@triton.jit
def load_rows(
    block, query, head, stride_token, stride_head, window, scale, cap,
    BLOCK_M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """The query rows of the pair."""
    row = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, DP)
    real = (row < block.count)[:, None] & (dims < D)[None, :]
    token = (block.first_row + row).to(tl.int64)
    # The launcher checks that strides are multiples of 16; this lets the compiler know.
    query_at = query + token[:, None] * (stride_token // 16 * 16) + head * (stride_head // 16 * 16)
    q = tl.load(query_at + dims[None, :], mask=real, other=0.0)
    # Rows that are not real see what the last real one sees, and nothing behind it.
    positions = block.position + tl.minimum(row, block.count - 1)
    return Rows(q, positions, window, block.position + block.count, scale, cap)


@triton.jit
def open_cache(
    block, key_cache, value_cache, page_table, stride_pages, slots, kv_head,
    KEYS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Keys and values of the block's sequence and one key head."""
    width: tl.constexpr = KV_HEADS * D
    dims = tl.arange(0, DP)
    if DESCRIPTORS:
        keys = tl.make_tensor_descriptor(key_cache, [slots, width], [width, 1], [PAGE, D])
        values = tl.make_tensor_descriptor(value_cache, [slots, width], [width, 1], [PAGE, D])
    else:
        keys = key_cache + kv_head * D
        values = value_cache + kv_head * D
    pages = page_table + block.sequence.to(tl.int64) * stride_pages
    offsets = (tl.arange(0, KEYS) % PAGE)[:, None] * width + dims[None, :]
    return Cache(keys, values, pages, PAGE * width, offsets, dims, kv_head * D)


@triton.jit
def seen_tiles(block, window, STEP: tl.constexpr):
    """Pages [first, last) that the block's rows see; every row sees all of [first, middle).

    A window leaves none that all rows see whole.
    """
    limit = block.position + block.count
    last = tl.maximum(tl.cdiv(limit, PAGE), 0)
    first = tl.maximum(block.position - window + 1, 0) // (STEP * PAGE) * STEP
    seen = tl.maximum((block.position + 1) // (STEP * PAGE) * STEP, first)
    middle = tl.where(window < limit, first, seen)
    return first, middle, last


@triton.jit
def edit_output(result, flags, gain_table, shift_table, site, D: tl.constexpr, DP: tl.constexpr):
    """What a program does to the output of a head, [BLOCK_M, DP]: a gain, and a shift."""
    if (flags & HEAD) != 0:
        dims = tl.arange(0, DP)
        shift = tl.load(shift_table + site * D + dims, mask=dims < D, other=0.0)
        result = result * tl.load(gain_table + site) + shift[None, :]
    return result


@triton.jit
def store_rows(result, first_row, count, output, head, HEADS: tl.constexpr, D: tl.constexpr):
    """Write the pair's rows, [BLOCK_M, DP], to ``output`` [rows, HEADS, D]."""
    row = tl.arange(0, result.shape[0])
    dims = tl.arange(0, result.shape[1])
    place = ((first_row + row).to(tl.int64)[:, None] * HEADS + head) * D + dims[None, :]
    real = (row < count)[:, None] & (dims < D)[None, :]
    tl.store(output + place, result.to(output.dtype.element_ty), mask=real)


@triton.jit
def load_block_again(blocks, number):
    """As :func:`load_block`, once more: what is not kept through a loop leaves registers to it."""
    at = blocks + number * FIELDS
    return Block(
        tl.load(at, volatile=True),
        tl.load(at + 1, volatile=True),
        tl.load(at + 2, volatile=True),
        tl.load(at + 3, volatile=True),
        tl.load(at + 4, volatile=True),
        tl.load(at + 5, volatile=True),
    )


@triton.jit
def place_of(block, head, HEADS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of the rows of a tile that begins at a multiple of BLOCK_M positions, [BLOCK_M]: whether the
    pair has it, and its place in [rows, HEADS].
    """
    row = tl.arange(0, BLOCK_M)
    skipped = block.position & (BLOCK_M - 1)  # a position may be negative
    is_real = (row >= skipped) & (row < skipped + block.count)
    return is_real, (block.first_row - skipped + row).to(tl.int64) * HEADS + head


@triton.jit
def load_tile(
    block, query, head, HEADS: tl.constexpr, stride_token, stride_head, window, scale, cap,
    BLOCK_M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """The query rows of a pair where they are in their tile, and :func:`place_of`."""
    row = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, DP)
    skipped = block.position & (BLOCK_M - 1)
    is_real, place = place_of(block, head, HEADS, BLOCK_M)
    token = (block.first_row - skipped + row).to(tl.int64)
    query_at = query + token[:, None] * (stride_token // 16 * 16) + head * (stride_head // 16 * 16)
    real = is_real[:, None] & (dims < D)[None, :]
    q = tl.load(query_at + dims[None, :], mask=real, other=0.0)
    start = block.position - skipped
    rows = Rows(q, start + row, window, block.position + block.count, scale, cap)
    return rows, is_real, place


@triton.jit
def is_own(per_head_rows, per_head_heads, tag_row, layer, layers, heads, head):
    """Whether a head has key classes of its own."""
    own = per_head_site(per_head_rows, tag_row, layer, layers, heads, head)
    return tl.load(per_head_heads + own) != 0
