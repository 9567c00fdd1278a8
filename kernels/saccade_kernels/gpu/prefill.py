"""Causal attention of prefill chunks in Triton; the specification is ``reference.prefill``.

One program takes one block of the work list (blocks.py) and one query head, and walks the pages of
keys that the rows of the block see. The body of a program is one of three:

* plain: one pass over the keys, without tables. A head without edits takes this body in the edited
  kernel too, so its rows get the bits of the plain kernel;
* one pass with edited scores or hidden keys;
* two passes, where masses are edited or emitted:

      first pass     mass m_c of every class; then its factor m'_c / m_c, by the transform and gates
      second pass    values, each times the weight of its key and the factor of the key's class

  Two passes take 1.5 times the products of one, and one accumulator for any number of classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from saccade_kernels.batch import PAGE as PAGE_SLOTS
from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.gpu import tuning
from saccade_kernels.gpu.blocks import FIELDS as BLOCK_FIELDS
from saccade_kernels.gpu.blocks import layer_edits, work_list
from saccade_kernels.gpu.classes import per_head_site
from saccade_kernels.gpu.prefill_tiles import (
    Cache,
    Rows,
    base2,
    load_edit,
    mass_pass,
    plain_pass,
    score_pass,
    value_pass,
)
from saccade_kernels.gpu.tiles import (
    HEAD,
    LN2,
    MASS,
    MOVED,
    NEVER_ATTEND,
    PAGE,
    SCORE,
    WIDTH,
    class_ratios,
    control_arguments,
    interpreted,
    per_head_arguments,
)
from saccade_kernels.gpu.tuning import PrefillConfig

FIELDS = tl.constexpr(BLOCK_FIELDS)
LARGEST_WEIGHT = tl.constexpr(32768.0)
"""Weights before normalisation stay below it: float16 ends at twice this."""


@triton.jit
def two_passes(
    m, acc, first, middle, last, rows, cache, edit, site, valid,
    transform, gate_weight, gate_threshold, masses, lse, emitted, moved,
    EMIT: tl.constexpr, D: tl.constexpr, CAPPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr, UPCAST: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """Attention under a mass edit. Returns the accumulator's divisor, and the accumulator.

    ``valid``: which rows of the block exist; ``emitted``: index of each row in masses and lse.
    """
    nothing = tl.zeros([m.shape[0], 2 * WIDTH], tl.float32)
    m, sums = mass_pass(
        m, nothing, first, middle, rows, cache, edit, False,
        D, CAPPED, DESCRIPTORS, UPCAST, PER_HEAD,
    )  # fmt: skip
    m, sums = mass_pass(
        m, sums, middle, last, rows, cache, edit, True,
        D, CAPPED, DESCRIPTORS, UPCAST, PER_HEAD,
    )  # fmt: skip
    sums = tl.sum(tl.reshape(sums, [m.shape[0], 2, WIDTH]), 1)
    total = tl.sum(sums, 1)
    divisor = tl.where(total > 0, total, 1.0)
    mass = sums / divisor[:, None]
    classes = tl.arange(0, WIDTH)[None, :]
    if EMIT:
        tl.store(masses + emitted[:, None] * WIDTH + classes, mass, mask=valid[:, None])
        normaliser = tl.where(total > 0, (m + tl.log2(divisor)) * LN2, float("-inf"))
        tl.store(lse + emitted, normaliser, mask=valid)
    ratio = class_ratios(mass, site, transform, gate_weight, gate_threshold, WIDTH)
    changed = tl.max((tl.abs(ratio - 1) > MOVED).to(tl.int32), 1)
    count = tl.sum(tl.where(valid, changed, 0), 0)
    tl.atomic_add(moved, count, mask=count > 0)
    # A faint class may grow until one key of it weighs as much as all keys together.
    largest = tl.max(mass * ratio, 1) * divisor
    shrink = 1.0 / tl.maximum(largest / LARGEST_WEIGHT, 1.0)
    ratios = ratio * shrink[:, None]
    acc = value_pass(
        acc, m, ratios, first, middle, rows, cache, edit,
        False, D, CAPPED, DESCRIPTORS, UPCAST, PER_HEAD,
    )  # fmt: skip
    acc = value_pass(
        acc, m, ratios, middle, last, rows, cache, edit,
        True, D, CAPPED, DESCRIPTORS, UPCAST, PER_HEAD,
    )  # fmt: skip
    return divisor * shrink, acc


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


@triton.jit(do_not_specialize=UNSPECIALISED, do_not_specialize_on_alignment=UNALIGNED)
def prefill_kernel(
    query,
    key_cache,
    value_cache,
    output,
    blocks,
    page_table,
    tag_rows,
    scale_table,
    absolute_table,
    bias_table,
    weight_table,
    transform_table,
    gate_weight_table,
    gate_threshold_table,
    gain_table,
    shift_table,
    edits_table,
    tags,
    key_weights,
    moved,
    per_head_rows,
    per_head_heads,
    per_head_classes,
    masses,
    lse,
    scale,
    cap,
    layer,
    window,
    slots,
    stride_token,
    stride_head,
    stride_pages,
    layers,
    max_len,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EDITED: tl.constexpr,
    EMIT: tl.constexpr,
    PER_HEAD: tl.constexpr,
    CAPPED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One block of query rows of one head. Grid (GROUP * KV_HEADS, blocks).

    Heads are the fast axis: the slowest blocks of all heads come first, so nothing slow is left
    for the end, and the heads of a group share their keys in L2.
    """
    head = tl.program_id(0)
    block = blocks + tl.program_id(1) * FIELDS
    kv_head = head // GROUP
    heads: tl.constexpr = GROUP * KV_HEADS
    width: tl.constexpr = KV_HEADS * D
    sequence, first_row, count = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    position = tl.load(block + 3)
    row = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, DP)
    valid = row < count
    real = valid[:, None] & (dims < D)[None, :]
    token = (first_row + row).to(tl.int64)
    # The launcher checks that strides are multiples of 16; this lets the compiler know.
    query_at = query + token[:, None] * (stride_token // 16 * 16) + head * (stride_head // 16 * 16)
    q = tl.load(query_at + dims[None, :], mask=real, other=0.0)
    # Rows that are not real see what the last real one sees, and nothing behind it.
    positions = position + tl.minimum(row, count - 1)
    limit = position + count
    rows = Rows(q, positions, window, limit, scale, cap)

    if DESCRIPTORS:
        keys = tl.make_tensor_descriptor(key_cache, [slots, width], [width, 1], [PAGE, D])
        values = tl.make_tensor_descriptor(value_cache, [slots, width], [width, 1], [PAGE, D])
    else:
        keys = key_cache + kv_head * D
        values = value_cache + kv_head * D
    pages = page_table + sequence.to(tl.int64) * stride_pages
    offsets = tl.arange(0, PAGE)[:, None] * width + dims[None, :]
    cache = Cache(keys, values, pages, PAGE * width, offsets, dims, kv_head * D)

    # Tiles [first, middle) are seen whole by every row; a window leaves none such.
    last = tl.maximum(tl.cdiv(limit, PAGE), 0)
    first = tl.maximum(position - window + 1, 0) // PAGE
    middle = tl.where(window < limit, first, tl.maximum((position + 1) // PAGE, first))

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DP], tl.float32)
    state = (m, l, acc)
    if EDITED:
        control_row, hides = tl.load(block + 4), tl.load(block + 5)
        site = (control_row.to(tl.int64) * layers + layer) * heads + head
        flags = tl.load(edits_table + site).to(tl.int32)
        if EMIT or (flags & (SCORE | MASS)) != 0 or hides != 0:
            tag_row = tl.load(tag_rows + sequence).to(tl.int64)
            tagged = tag_row * layers + layer
            own_tags = tags + tagged * max_len
            classes = own_tags
            if PER_HEAD:
                own = per_head_site(per_head_rows, tag_row, layer, layers, heads, head)
                if tl.load(per_head_heads + own) != 0:
                    classes = per_head_classes + own * max_len
            edit = load_edit(
                scale_table,
                absolute_table,
                bias_table,
                weight_table,
                site,
                own_tags,
                key_weights + tag_row * max_len,
                tl.where(hides != 0, NEVER_ATTEND, -1),
                base2(scale, CAPPED),
                classes,
            )
            if EMIT or (flags & MASS) != 0:
                l, acc = two_passes(
                    m, acc, first, middle, last, rows, cache, edit, site, valid,
                    transform_table, gate_weight_table, gate_threshold_table,
                    masses, lse, token * heads + head,
                    moved + tagged * heads + head,
                    EMIT, D, CAPPED, DESCRIPTORS, UPCAST, PER_HEAD,
                )  # fmt: skip
            else:
                state = score_pass(
                    state, first, middle, rows, cache, edit, False, D, CAPPED, DESCRIPTORS, UPCAST
                )
                m, l, acc = score_pass(
                    state, middle, last, rows, cache, edit, True, D, CAPPED, DESCRIPTORS, UPCAST
                )
        else:
            state = plain_pass(
                state, first, middle, rows, cache, False, D, CAPPED, DESCRIPTORS, UPCAST
            )
            m, l, acc = plain_pass(
                state, middle, last, rows, cache, True, D, CAPPED, DESCRIPTORS, UPCAST
            )
    else:
        state = plain_pass(state, first, middle, rows, cache, False, D, CAPPED, DESCRIPTORS, UPCAST)
        m, l, acc = plain_pass(
            state, middle, last, rows, cache, True, D, CAPPED, DESCRIPTORS, UPCAST
        )

    result = acc / tl.where(l > 0, l, 1.0)[:, None]
    if EDITED:
        if (flags & HEAD) != 0:
            offset = tl.load(shift_table + site * D + dims, mask=dims < D, other=0.0)
            result = result * tl.load(gain_table + site) + offset[None, :]
    else:  # read again: what is not kept through the passes leaves registers to them
        first_row = tl.load(block + 1, volatile=True)
        count = tl.load(block + 2, volatile=True)
    place = ((first_row + row).to(tl.int64)[:, None] * heads + head) * D + dims[None, :]
    real = (row < count)[:, None] & (dims < D)[None, :]
    tl.store(output + place, result.to(output.dtype.element_ty), mask=real)


def prefill(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    emit: Emission | None = None,
    config: PrefillConfig | None = None,
) -> torch.Tensor:
    """Causal attention of the sequences behind the decodes; see :func:`reference.prefill`.

    Args:
        query: [tokens - num_decodes, heads, head_dim] of float16, bfloat16 or float32, the last
            dimension contiguous, as in the caches.
        scale: positive.
        config: how to launch; by default what tuning.json says.
    """
    output = query.new_empty(query.shape)
    if not batch.prefills:
        return output
    edited = emit is not None or layer_edits(batch, layer) != 0
    heads, dim = query.shape[1:]
    if config is None:
        config = tuning.prefill_config(dim, edited, query.dtype)
    if emit is not None:
        config = emitting(config)
    blocks = work_list(batch, config.block_m, query.device)
    slots, kv_heads = key_cache.shape[0] * PAGE_SLOTS, key_cache.shape[2]
    assert scale > 0
    assert query.stride(2) == 1
    assert query.stride(0) % 16 == query.stride(1) % 16 == 0
    assert key_cache.is_contiguous()
    assert value_cache.is_contiguous()
    masses, lse = (None, None) if emit is None else (emit.masses, emit.lse)
    per_head_classes = edited and batch.per_head_classes
    tables = control_arguments(batch, edited) + per_head_arguments(batch, per_head_classes)
    layers, max_len = batch.tables()[1].tags.shape[1:] if edited else (0, 0)
    if config.descriptors:
        triton.set_allocator(_scratch)
    prefill_kernel[(heads, blocks.shape[0])](
        query,
        key_cache,
        value_cache,
        output,
        blocks,
        batch.page_table,
        batch.tag_rows,
        *tables,
        masses,
        lse,
        scale,
        softcap,
        layer,
        window if window > 0 else NO_WINDOW,
        slots,
        query.stride(0),
        query.stride(1),
        batch.page_table.stride(0),
        layers,
        max_len,
        **constants(dim, heads // kv_heads, kv_heads, config),
        EDITED=edited,
        EMIT=emit is not None,
        PER_HEAD=per_head_classes,
        CAPPED=softcap > 0,
        UPCAST=interpreted(),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return output


def emitting(config: PrefillConfig) -> PrefillConfig:
    """How to launch the form that emits, so that it fits the registers: fewer tiles in flight."""
    return replace(config, num_stages=min(2, config.num_stages))


NO_WINDOW = 1 << 30
"""A window longer than any sequence."""

_scratches: dict[int, list[torch.Tensor]] = {}


def _scratch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Memory for the descriptors that programs build: one buffer per device, for every launch.

    Launches on one CUDA stream run one after another, so all share the buffer. A larger buffer
    takes the place of one that is too small, which stays alive: a captured graph may point to it.
    """
    buffers = _scratches.setdefault(torch.cuda.current_device(), [])
    if not buffers or buffers[-1].numel() < size:
        buffers.append(torch.empty(max(1 << 22, 2 * size), dtype=torch.uint8, device="cuda"))
    return buffers[-1]


def constants(dim: int, group: int, kv_heads: int, config: PrefillConfig) -> dict[str, Any]:
    """What a model's shape and a configuration fix at compile time."""
    return {
        "GROUP": group,
        "KV_HEADS": kv_heads,
        "D": dim,
        "DP": max(16, triton.next_power_of_2(dim)),
        "BLOCK_M": config.block_m,
        "DESCRIPTORS": config.descriptors,
    }
