"""Triton weights that heads use; the specification is reference.py.

Attention emits what normalises it, attention rows follow from that (columns.py), and where masses
are edited one launch more moves them, in place. Nothing is read back from the device. The rows are
those of a batch of their own, so this changes no bit of anybody's answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
import triton
import triton.language as tl

from saccade_kernels.batch import PAGE, AttentionBatch, Emission
from saccade_kernels.columns_reference import longest_context
from saccade_kernels.controls import CLASSES, Edit
from saccade_kernels.gpu.arguments import PER_HEAD_TYPES, Variant, batch_arguments, launch
from saccade_kernels.gpu.classes import per_head_site
from saccade_kernels.gpu.columns import attention_rows
from saccade_kernels.gpu.decode import decode
from saccade_kernels.gpu.prefill import prefill
from saccade_kernels.gpu.tiles import NEVER_ATTEND, WIDTH, class_ratios

KEYS = 4 * PAGE
"""Keys that one program moves."""

UNSPECIALISED = ["layer", "width", "layers", "max_len"]
"""Integers whose value must not choose another compiled kernel while serving."""

UNALIGNED = ["control_rows", "tag_rows", "sequences"]
"""Tensors that may be views into others; nor must their alignment."""

TABLES = ("transform_table", "gate_weight_table", "gate_threshold_table")


def head_weights(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
) -> torch.Tensor:
    """:func:`saccade_kernels.reference.head_weights` in Triton."""
    tokens, heads = query.shape[:2]
    emission = Emission(
        query.new_empty(tokens, heads, CLASSES, dtype=torch.float32),
        query.new_empty(tokens, heads, dtype=torch.float32),
    )
    _emit(query, (key_cache, value_cache), batch, layer, (scale, softcap, window), emission)
    rows = batch.derived.get("every row")
    if rows is None:
        rows = torch.arange(tokens, dtype=torch.int32, device=query.device)
        batch.derived["every row"] = rows
    scores = (scale, softcap, window)
    weights = attention_rows(query, key_cache, batch, layer, *scores, emission.lse, rows)
    if weights.numel() and _edits_masses(batch, layer):
        _move(weights, emission.masses, batch, layer)
    return weights


def _emit(
    query: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    batch: AttentionBatch,
    layer: int,
    scores: tuple[float, float, int],
    emission: Emission,
) -> None:
    """Class masses and normalisers of all rows; no row counts as moved."""
    if "uncounted" not in batch.derived:
        tags = batch.tables()[1]
        uncounted = replace(batch, tags=replace(tags, moved=torch.empty_like(tags.moved)))
        batch.derived["uncounted"] = replace(uncounted, derived={})
    batch, decodes = batch.derived["uncounted"], batch.num_decodes
    arguments = (*caches, batch, layer, *scores)
    if decodes:
        decode(query[:decodes], *arguments, emission.rows(slice(0, decodes)))
    if batch.prefills:
        prefill(query[decodes:], *arguments, emission.rows(slice(decodes, None)))


def _edits_masses(batch: AttentionBatch, layer: int) -> bool:
    edit = batch.edit(layer) if batch.num_decodes else Edit.NONE
    for known in batch.prefills:
        edit |= known.edit(layer)
    return bool(edit & Edit.MASS)


def _move(weights: torch.Tensor, masses: torch.Tensor, batch: AttentionBatch, layer: int) -> None:
    """Apply the mass edits of rows to their weights, in place."""
    tokens, heads, width = weights.shape
    _, sequences = batch.derived["sequences"]  # as attention_rows has found them
    arguments = {
        **batch_arguments(batch, layer, True),
        "weights": weights,
        "masses": masses,
        "sequences": sequences,
        "width": width,
        "HEADS": heads,
        "PER_HEAD": batch.per_head_classes,
    }
    launch(mass_kernel, (tokens, heads, -(-longest_context(batch) // KEYS)), arguments, CONFIG)


CONFIG = (4, 2)
"""Warps and stages: it moves memory, and little of it."""


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def mass_kernel(
    weights, masses, sequences, control_rows, tag_rows,
    transform_table, gate_weight_table, gate_threshold_table, tags,
    per_head_rows, per_head_heads, per_head_classes,
    layer, width, layers, max_len,
    HEADS: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """KEYS keys of one row of one head, each weight times what became of its class.

    Grid (rows, HEADS, chunks of the longest sequence). weights is [row, head, width], masses [row,
    head, WIDTH].
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    KEYS: tl.constexpr = 256
    klass = tl.arange(0, WIDTH)
    mass = tl.load(masses + (row * HEADS + head) * WIDTH + klass)
    site = (tl.load(control_rows + row) * layers + layer) * HEADS + head
    ratio = class_ratios(
        mass[None, :], site, transform_table, gate_weight_table, gate_threshold_table, WIDTH
    )
    tag_row = tl.load(tag_rows + tl.load(sequences + row)).to(tl.int64)
    position = tl.program_id(2) * KEYS + tl.arange(0, KEYS)
    inside = position < width
    tags_at = tags + (tag_row * layers + layer) * max_len
    known = inside & (position < max_len)
    of_key = tl.load(tags_at + position, mask=known, other=NEVER_ATTEND).to(tl.int32)
    if PER_HEAD:
        own_site = per_head_site(per_head_rows, tag_row, layer, layers, HEADS, head)
        is_own = tl.load(per_head_heads + own_site) != 0
        own_at = per_head_classes + own_site * max_len + position
        own = tl.load(own_at, mask=known & is_own, other=0).to(tl.int32)
        of_key = tl.where(is_own, own, of_key)
    same = of_key[:, None] == klass[None, :]
    factor = tl.sum(tl.where(same, ratio, 0.0), 1)
    at = weights + (row * HEADS + head).to(tl.int64) * width + position
    weight = tl.load(at, mask=inside, other=0.0)
    # A key that nobody sees may have any class, and a class of its own no factor.
    tl.store(at, tl.where(weight > 0, weight * factor, 0.0), mask=inside)


def variants() -> Iterator[Variant]:
    """The compiled forms that serving may ask for, for the offline checks."""
    for heads, per_head in product((4, 28), (False, True)):
        types: dict[str, str | None] = dict.fromkeys(mass_kernel.arg_names, "*fp32")
        types |= dict.fromkeys(UNSPECIALISED, "i32") | dict.fromkeys(UNALIGNED, "*i32")
        types |= {"tags": "*u8"}
        types |= PER_HEAD_TYPES if per_head else dict.fromkeys(PER_HEAD_TYPES)
        name = f"moved-h{heads}" + "-per-head" * per_head
        constants = {"HEADS": heads, "PER_HEAD": per_head}
        yield name, mass_kernel, types, constants, *CONFIG
