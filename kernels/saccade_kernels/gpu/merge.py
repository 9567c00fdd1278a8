"""Second half of a Triton decode: merge the splits and classes of each head, edit, and write.

    part_max, by split and class        class 0  class 1  class 2
                               split 0    3.1      2.0     -inf      nothing else is read of -inf
                               split 1    3.3     -inf     -inf
    masses of classes          sum over splits of exp2(part_max - highest) * part_sum
    their ratios               what a mass edit makes of them; 1 without one
    output                     sum over classes of ratio * (sum over splits of ... * part_out)

Classes partition the keys of a row, so its output is the sum over classes of mass times output, and
a mass edit replaces the masses in that sum. Sums go class by class and in blocks of splits, in an
order that does not depend on how many classes there may be.

Tiles: SPLITS splits x D of one class. Bytes: 4 * (D + 2) a split and class that is there; products:
none.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from saccade_kernels.batch import Emission
from saccade_kernels.gpu.arguments import launch
from saccade_kernels.gpu.tiles import HEAD, LN2, MASS, MOVED, PAGE, SCORE, WIDTH, class_ratios

UNSPECIALISED = [
    "layer",
    "window",
    "splits",
    "stride_token",
    "stride_head",
    "stride_pages",
    "stride_words",
    "layers",
    "max_len",
]
"""Integers whose value must not choose another compiled kernel while serving."""

UNALIGNED = [
    "context_lens",
    "page_table",
    "control_rows",
    "tag_rows",
    "page_words",
    "part_max",
    "part_sum",
    "masses",
    "lse",
]
"""Tensors that may lie anywhere inside a larger one; nor must the place they have there."""

MERGE_WARPS, MERGE_STAGES = 4, 3

MERGE_SPLITS = 8
"""Splits that are added at a time."""


@triton.jit
def split_of(context, window, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """First key a decode needs, rounded down to a page; and the keys of each of its splits."""
    first = 0
    if window > 0:
        first = tl.maximum(context - window, 0) // PAGE * PAGE
    share = tl.cdiv(tl.cdiv(context - first, MAX_SPLITS), PAGE) * PAGE
    return first, tl.maximum(share, SPLIT)


@triton.jit
def group_is_edited(flags_at, hides_at, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """True if a query head of a key head edits scores or masses, or its sequence hides keys."""
    member = tl.arange(0, ROWS)
    flags = tl.load(flags_at + member, mask=member < GROUP, other=0).to(tl.int32)
    return tl.max(flags & (SCORE | MASS), 0) + tl.load(hides_at).to(tl.int32) > 0


@triton.jit
def merge_parts(
    part_max,
    part_sum,
    part_out,
    row,
    count,
    present,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    ALL_SPLITS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Splits of one head of one query row, put together.

    ``row``: where its ``count`` splits begin among partials of C classes; ``present``: classes that
    may have been written. Of a class that a split has no key of only the maximum, -inf, is read.

    Returns:
        The highest maximum, finite; and of each class the sum [C] and output [C, DP] under it.
    """
    klass = tl.arange(0, C)
    column = tl.arange(0, DP)
    every = tl.arange(0, ALL_SPLITS)
    is_written = (every < count)[:, None] & (klass < present)[None, :]
    peaks_at = part_max + (row + every[:, None]) * C + klass[None, :]
    peaks = tl.max(tl.load(peaks_at, mask=is_written, other=float("-inf")), 0)
    found = tl.sum((peaks > float("-inf")).to(tl.int32) << klass, 0)
    top = tl.where(found == 0, 0.0, tl.max(peaks, 0))  # nothing is visible

    # Class by class: a sum over both axes at once could add in another order for another C.
    total = tl.zeros([C], tl.float32)
    out = tl.zeros([C, DP], tl.float32)
    for one in tl.range(0, present, num_stages=1):
        if (found >> one) & 1 != 0:
            every_at = (row + every) * C + one
            peak = tl.load(part_max + every_at, mask=every < count, other=float("-inf"))
            own = tl.load(part_sum + every_at, mask=peak > float("-inf"), other=0.0)
            total = tl.where(klass == one, tl.sum(tl.exp2(peak - top) * own, 0), total)
            tile = tl.zeros([SPLITS, DP], tl.float32)
            for start in tl.range(0, count, SPLITS):
                split = start + tl.arange(0, SPLITS)
                part = (row + split) * C + one
                highest = tl.load(part_max + part, mask=split < count, other=float("-inf"))
                is_value = (highest > float("-inf"))[:, None] & (column < D)[None, :]
                value_at = part_out + part.to(tl.int64)[:, None] * D + column[None, :]
                value = tl.load(value_at, mask=is_value, other=0.0)
                tile += tl.exp2(highest - top)[:, None] * value
            out = tl.where((klass == one)[:, None], tl.sum(tile, 0)[None, :], out)
    return top, total, out


@triton.jit
def finish(
    top,
    total,
    out,
    site,
    moved_at,
    transform_table,
    gate_weight_table,
    gate_threshold_table,
    gain_table,
    shift_table,
    edits_table,
    output_at,
    masses_at,
    lse_at,
    D: tl.constexpr,
    C: tl.constexpr,
    EDITED: tl.constexpr,
    EMIT: tl.constexpr,
):
    """What :func:`merge_parts` found, edited and written: one head of one query row.

    ``output_at``, ``masses_at``, ``lse_at``: where to; ``moved_at``: what counts rows whose masses
    move, or None.
    """
    column = tl.arange(0, out.shape[1])
    is_column = column < D
    whole = tl.sum(total, 0)
    factor = tl.full([C], 1.0, tl.float32) / tl.where(whole > 0, whole, 1.0)
    mass = total * factor
    if EMIT:
        klass = tl.arange(0, C)
        rest = tl.arange(0, WIDTH)
        tl.store(masses_at + klass, mass)
        tl.store(masses_at + rest, tl.zeros([WIDTH], tl.float32), mask=rest >= C)
        normaliser = (top + tl.log2(tl.where(whole > 0, whole, 1.0))) * LN2
        tl.store(lse_at, tl.where(whole > 0, normaliser, float("-inf")))
    if EDITED:
        flags = tl.load(edits_table + site).to(tl.int32)
        if (flags & MASS) != 0:
            ratio = class_ratios(
                mass[None, :], site, transform_table, gate_weight_table, gate_threshold_table, C
            )
            if moved_at is not None:
                changed = tl.max(tl.max((tl.abs(ratio - 1) > MOVED).to(tl.int32), 1), 0)
                tl.atomic_add(moved_at, changed, mask=changed > 0)
            factor = factor * tl.reshape(ratio, [C])
    result = tl.sum(out * factor[:, None], 0)
    if EDITED:
        if (flags & HEAD) != 0:
            shift = tl.load(shift_table + site * D + column, mask=is_column, other=0.0)
            result = tl.load(gain_table + site) * result + shift
    tl.store(output_at + column, result.to(output_at.dtype.element_ty), mask=is_column)


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def merge_kernel(
    part_max,
    part_sum,
    part_out,
    context_lens,
    control_rows,
    tag_rows,
    transform_table,
    gate_weight_table,
    gate_threshold_table,
    gain_table,
    shift_table,
    edits_table,
    hides,
    moved,
    output,
    masses,
    lse,
    layer,
    window,
    splits,
    layers,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    ALL_SPLITS: tl.constexpr,
    SPLITS: tl.constexpr,
    EDITED: tl.constexpr,
    EMIT: tl.constexpr,
):
    """One head of one sequence. Grid (heads, sequences)."""
    heads: tl.constexpr = KV_HEADS * GROUP
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    context = tl.load(context_lens + sequence)
    first, length = split_of(context, window, SPLIT, MAX_SPLITS)
    count = tl.cdiv(context - first, length)  # 0 for padding
    row = (sequence * heads + head) * splits
    present, site, moved_at = C, 0, moved
    if EDITED:
        tag_row = tl.load(tag_rows + sequence)
        sites = (tl.load(control_rows + sequence) * layers + layer) * heads
        site = sites + head
        moved_at = moved + (tag_row * layers + layer) * heads + head
        if not EMIT:
            group = edits_table + sites + head // GROUP * GROUP
            if not group_is_edited(group, hides + tag_row, GROUP, ROWS):
                present = 1  # all keys are of class 0, and nothing is written of the others
    top, total, out = merge_parts(
        part_max, part_sum, part_out, row, count, present, D, DP, C, ALL_SPLITS, SPLITS
    )
    token = sequence * heads + head
    finish(
        top, total, out, site, moved_at,
        transform_table, gate_weight_table, gate_threshold_table,
        gain_table, shift_table, edits_table,
        output + token * D, masses + token * WIDTH if EMIT else None, lse + token if EMIT else None,
        D, C, EDITED, EMIT,
    )  # fmt: skip


def merge(arguments: dict[str, Any], rows: tuple[int, int], emit: Emission | None) -> None:
    """Merge what a split kernel left in the partials into the output.

    Args:
        arguments: the split kernel's, and ``output``. Partials are maximum and sum [sequences,
            heads, splits, C] and output [..., head_dim]; float32.
        rows: heads and sequences.
    """
    own = {
        "masses": None if emit is None else emit.masses,
        "lse": None if emit is None else emit.lse,
        **merge_shape(arguments["MAX_SPLITS"]),
    }
    launch(merge_kernel, rows, arguments | own, (MERGE_WARPS, MERGE_STAGES))


def merge_shape(max_splits: int) -> dict[str, int]:
    """Splits of a tile, and of all tiles, which need not be a power of two for the others."""
    return {"ALL_SPLITS": triton.next_power_of_2(max_splits), "SPLITS": MERGE_SPLITS}
