"""Merge of a prefill's question rows: a query row is here what a sequence is to a decode's merge.

One program puts the splits of one head of one row together, edits masses and output, and writes:

    part_max, part_sum   [splits of the row, C]        ->  masses of the row's classes, their ratios
    part_out             [splits of the row, C, D]     ->  D values of the output

Of a row of n splits it reads (D + 2) * 4 bytes for each class of each split that has one: a few
kilobytes, and a multiply-add for each value.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from saccade_kernels.gpu.arguments import launch
from saccade_kernels.gpu.merge import MERGE_WARPS, finish, merge_parts
from saccade_kernels.gpu.prefill_blocks import is_own
from saccade_kernels.gpu.split_rows import ROW_FIELDS as FIELDS_OF_A_ROW
from saccade_kernels.gpu.split_rows import Wave
from saccade_kernels.gpu.tiles import MASS, SCORE

ROW_FIELDS = tl.constexpr(FIELDS_OF_A_ROW)

UNSPECIALISED = ["layer", "layers"]
"""Integers whose value must not choose another compiled kernel while serving."""

UNALIGNED = ["rows", "tag_rows"]
"""Tensors that may lie anywhere inside a larger one; nor must the place they have there."""


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def merge_rows_kernel(
    part_max,
    part_sum,
    part_out,
    rows,
    tag_rows,
    transform_table,
    gate_weight_table,
    gate_threshold_table,
    gain_table,
    shift_table,
    edits_table,
    moved,
    per_head_rows,
    per_head_heads,
    output,
    layer,
    layers,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    C: tl.constexpr,
    ALL_SPLITS: tl.constexpr,
    SPLITS: tl.constexpr,
    COUNTS: tl.constexpr,
    PER_HEAD: tl.constexpr,
):
    """One head of one row. Grid (GROUP * KV_HEADS, rows).

    Heads whose attention is left alone, and those whose masses are of key classes of their own, are
    written by other kernels. COUNTS: rows whose masses move are counted here.
    """
    heads: tl.constexpr = GROUP * KV_HEADS
    head = tl.program_id(0)
    entry = rows + tl.program_id(1) * ROW_FIELDS
    token, sequence, control_row = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    site = (control_row.to(tl.int64) * layers + layer) * heads + head
    flags = tl.load(edits_table + site).to(tl.int32)
    if ((flags & (SCORE | MASS)) == 0) & (tl.load(entry + 3) == 0):
        return
    tag_row = tl.load(tag_rows + sequence).to(tl.int64)
    if PER_HEAD:
        if (flags & MASS) != 0:
            if is_own(per_head_rows, per_head_heads, tag_row, layer, layers, heads, head):
                return
    count = tl.load(entry + 5)
    row = tl.load(entry + 4) * heads + head * count
    top, total, out = merge_parts(
        part_max, part_sum, part_out, row, count, C, D, DP, C, ALL_SPLITS, SPLITS
    )
    finish(
        top, total, out, site,
        moved + (tag_row * layers + layer) * heads + head if COUNTS else None,
        transform_table, gate_weight_table, gate_threshold_table,
        gain_table, shift_table, edits_table,
        output + (token.to(tl.int64) * heads + head) * D, None, None, D, C, True, False,
    )  # fmt: skip


def merge_rows(arguments: dict[str, Any], wave: Wave) -> None:
    """Merge what the split prefill left of a wave's rows into ``output`` [rows, heads, head_dim].

    Args:
        arguments: the split kernel's by name, with partials ``part_max`` and ``part_sum`` [splits,
            heads, C] and ``part_out`` [splits, heads, C, head_dim], float32. Splits of one row and
            head lie together, see :data:`split_rows.ROW_FIELDS`.
    """
    taken = arguments | {"rows": wave.rows, "COUNTS": not arguments["EMIT"]}
    grid = (arguments["output"].shape[1], wave.rows.shape[0])
    launch(merge_rows_kernel, grid, taken, (MERGE_WARPS, 3))
