"""Second half of a Triton decode: merge the splits and classes of each head, edit, and write.

Classes partition the keys of a row, so its output is the sum over classes of mass times output,
and a mass edit replaces the masses in that sum.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.gpu.tiles import HEAD, LN2, MASS, MOVED, PAGE, SCORE, WIDTH, class_ratios

UNSPECIALISED = [
    "layer",
    "window",
    "splits",
    "stride_token",
    "stride_head",
    "stride_pages",
    "layers",
    "max_len",
]
"""Integers whose value must not choose another compiled kernel while serving."""

UNALIGNED = [
    "context_lens",
    "page_table",
    "control_rows",
    "tag_rows",
    "part_max",
    "part_sum",
    "masses",
    "lse",
]
"""Tensors that may lie anywhere inside a larger one; nor must the place they have there."""

MERGE_WARPS = 4


@triton.jit
def split_of(context, window, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """First key a decode needs, rounded down to a page; and the keys of each of its splits."""
    first = 0
    if window > 0:
        first = tl.maximum(context - window, 0) // PAGE * PAGE
    share = tl.cdiv(tl.cdiv(context - first, MAX_SPLITS), PAGE) * PAGE
    return first, tl.maximum(share, SPLIT)


@triton.jit
def group_is_edited(flags_at, hides_at, GROUP: tl.constexpr, PLAIN_ROWS: tl.constexpr):
    """True if a query head of a key head edits scores or masses, or its sequence hides keys."""
    member = tl.arange(0, PLAIN_ROWS)
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
    MAX_SPLITS: tl.constexpr,
):
    """Splits of one head of one query row, put together.

    ``row``: where its ``count`` splits begin among partials of C classes; ``present``: classes that
    may have been written. Of a class that a split has no key of only the maximum, -inf, is read.

    Returns:
        The highest maximum, finite; and of each class the sum [C] and output [C, DP] under it.
    """
    klass = tl.arange(0, C)
    column = tl.arange(0, DP)
    is_present = klass < present
    split = tl.arange(0, MAX_SPLITS)
    every = (row + split[:, None]) * C + klass[None, :]
    is_written = (split < count)[:, None] & is_present[None, :]
    peaks = tl.load(part_max + every, mask=is_written, other=float("-inf"))
    top = tl.max(tl.max(peaks, 1), 0)
    top = tl.where(top == float("-inf"), 0.0, top)  # nothing is visible

    # In order, whatever C is: a reduction over both axes could add in another order.
    total = tl.zeros([C], tl.float32)
    out = tl.zeros([C, DP], tl.float32)
    for s in tl.range(0, count, num_stages=4):
        part = (row + s) * C + klass
        peak = tl.load(part_max + part, mask=is_present, other=float("-inf"))
        is_read = peak > float("-inf")
        share = tl.exp2(peak - top)
        total += share * tl.load(part_sum + part, mask=is_read, other=0.0)
        out_at = part_out + part.to(tl.int64)[:, None] * D + column[None, :]
        is_value = is_read[:, None] & (column < D)[None, :]
        out += share[:, None] * tl.load(out_at, mask=is_value, other=0.0)
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
    is_written,
    D: tl.constexpr,
    C: tl.constexpr,
    EDITED: tl.constexpr,
    EMIT: tl.constexpr,
):
    """What :func:`merge_parts` found, edited and written: one head of one query row.

    ``moved_at``, ``output_at``, ``masses_at``, ``lse_at``: where to. ``is_written``: false if this
    row only emits.
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
            changed = tl.max(tl.max((tl.abs(ratio - 1) > MOVED).to(tl.int32), 1), 0)
            tl.atomic_add(moved_at, changed, mask=changed > 0)
            factor = factor * tl.reshape(ratio, [C])
    result = tl.sum(out * factor[:, None], 0)
    if EDITED:
        if (flags & HEAD) != 0:
            shift = tl.load(shift_table + site * D + column, mask=is_column, other=0.0)
            result = tl.load(gain_table + site) * result + shift
    where = is_column & is_written
    tl.store(output_at + column, result.to(output_at.dtype.element_ty), mask=where)


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
    PLAIN_ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
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
            if not group_is_edited(group, hides + tag_row, GROUP, PLAIN_ROWS):
                present = 1  # the plain path
    top, total, out = merge_parts(
        part_max, part_sum, part_out, row, count, present, D, DP, C, MAX_SPLITS
    )
    token = sequence * heads + head
    finish(
        top, total, out, site, moved_at,
        transform_table, gate_weight_table, gate_threshold_table,
        gain_table, shift_table, edits_table,
        output + token * D, masses + token * WIDTH if EMIT else None, lse + token if EMIT else None,
        True, D, C, EDITED, EMIT,
    )  # fmt: skip


def merge(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    output: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    window: int,
    emit: Emission | None,
    constants: dict[str, Any],
) -> None:
    """Merge what the split kernel left into ``output`` [sequences, heads, head_dim].

    Args:
        parts: maximum and sum [sequences, heads, splits, C], output [..., head_dim]; float32.
        constants: the split kernel's.
    """
    sequences, heads, splits, _ = parts[0].shape
    tables: tuple[torch.Tensor | None, ...] = (None,) * 8
    layers = 0
    if constants["EDITED"]:
        controls, tags = batch.tables()
        masses = (controls.transform, controls.gate_weight, controls.gate_threshold)
        tables = (*masses, controls.gain, controls.shift, controls.edits, tags.hides, tags.moved)
        layers = tags.tags.shape[1]
    merge_kernel[(heads, sequences)](
        *parts,
        batch.context_lens,
        batch.control_rows,
        batch.tag_rows,
        *tables,
        output,
        None if emit is None else emit.masses,
        None if emit is None else emit.lse,
        layer,
        window,
        splits,
        layers,
        **constants,
        num_warps=MERGE_WARPS,
    )
