"""Causal attention of prefill chunks in Triton: which kernels run; see ``reference.prefill``.

A pair of block (blocks.py) and query head is plain or edited, and each kind has launches of its
own, so that plain rows run at the plain kernel's speed and get its bits:

    plain, or heads' outputs alone          prefill_plain.py
    scores, or hidden keys                  prefill_values.py
    masses                                  prefill_masses.py, behind it prefill_values.py
    masses of single heads' own classes     prefill_per_head.py

What edits takes lists of keys by class (page_lists.py), made for the layer in a launch before. If
masses are emitted, those of all pairs are found; their outputs come from the same launches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import triton

from saccade_kernels.batch import PAGE, AttentionBatch, Emission
from saccade_kernels.controls import CLASSES, Edit
from saccade_kernels.gpu import tuning
from saccade_kernels.gpu.arguments import batch_arguments, launch
from saccade_kernels.gpu.blocks import layer_edits, work_list
from saccade_kernels.gpu.page_lists import list_pages
from saccade_kernels.gpu.prefill_masses import prefill_masses_kernel
from saccade_kernels.gpu.prefill_per_head import prefill_per_head_kernel
from saccade_kernels.gpu.prefill_plain import prefill_plain_kernel
from saccade_kernels.gpu.prefill_specialised import prefill_specialised_kernel
from saccade_kernels.gpu.prefill_split import attend_split
from saccade_kernels.gpu.prefill_values import prefill_values_kernel
from saccade_kernels.gpu.split_rows import split_layer
from saccade_kernels.gpu.tiles import PER_HEAD_ARGUMENTS, interpreted
from saccade_kernels.gpu.tuning import PrefillConfig, SplitConfig

Launches = PrefillConfig | Mapping[str, PrefillConfig] | None
"""How to launch all forms, or those that are named."""

NO_WINDOW = 1 << 30
"""A window longer than any sequence."""


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
    config: Launches = None,
    split: SplitConfig | None = None,
) -> torch.Tensor:
    """Causal attention of the sequences behind the decodes; see :func:`reference.prefill`.

    Args:
        query: [tokens - num_decodes, heads, head_dim] of float16, bfloat16 or float32, the last
            dimension contiguous, as in the caches.
        scale: positive.
        config: of every launch, or of those of some forms; by default what tuning.json says.
        split: which edited rows are split over their keys, and how; by default likewise.
    """
    output = query.new_empty(query.shape)
    if not batch.prefills:
        return output
    assert scale > 0
    assert query.stride(2) == 1
    assert query.stride(0) % 16 == query.stride(1) % 16 == 0
    assert key_cache.is_contiguous()
    assert value_cache.is_contiguous()
    edits = layer_edits(batch, layer)
    arguments = {
        **batch_arguments(batch, layer, edits != 0),
        "query": query,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "output": output,
        "scale": scale,
        "cap": softcap,
        "window": window if window > 0 else NO_WINDOW,
        "slots": key_cache.shape[0] * PAGE,
        "stride_token": query.stride(0),
        "stride_head": query.stride(1),
        "CAPPED": softcap > 0,
        "UPCAST": interpreted(),
    }
    arguments["BESIDE"] = edits != 0
    _launch("plain", batch, arguments, config)
    if edits & ~Edit.HEAD or emit is not None:
        split = split or tuning.split_config(query.shape[2], query.dtype)
        arguments |= batch_arguments(batch, layer, True)
        arguments |= _edited_arguments(batch, layer, query, emit)
        for form in _edited_forms(batch, Edit(edits), emit is not None):
            # Score edits go by the tag in every head.
            own: dict[str, Any] = {"SCORE": form == "scores"}
            if form == "scores":
                own |= {"PER_HEAD": False, **dict.fromkeys(PER_HEAD_ARGUMENTS)}
            _launch(form, batch, arguments | own, config, split)
        if split_layer(batch, layer, split):
            attend_split(batch, layer, window, arguments, split)
    return output


def _edited_arguments(
    batch: AttentionBatch, layer: int, query: torch.Tensor, emit: Emission | None
) -> dict[str, Any]:
    """What the edited forms take beside the plain one's arguments."""
    lists = list_pages(batch, layer)
    rows = query.shape[:2]
    return {
        "whole": lists.whole,
        "keys": lists.keys,
        "before": lists.before,
        "classes": lists.whole.shape[1],
        "max_pages": lists.whole.shape[2],
        "first_sequence": batch.num_decodes,
        "levels": query.new_empty(*rows, CLASSES, dtype=torch.float32),
        "norms": query.new_empty(rows, dtype=torch.float32),
        "masses": None if emit is None else emit.masses,
        "lse": None if emit is None else emit.lse,
        "EMIT": emit is not None,
        "PER_HEAD": batch.per_head_classes,
        "beside": 1,
    }


def _edited_forms(batch: AttentionBatch, edits: Edit, emits: bool) -> Iterator[str]:
    """The launches beside the plain one, in order."""
    moves = Edit.MASS in edits
    if moves or emits:
        yield "masses"
        if batch.per_head_classes:
            yield "per_head"
    if moves:
        yield "values"
    if edits & (Edit.SCORE | Edit.HIDE):
        yield "scores"


KERNELS = {
    "masses": prefill_masses_kernel,
    "values": prefill_values_kernel,
    "scores": prefill_values_kernel,
    "per_head": prefill_per_head_kernel,
}
"""Of the edited forms."""


def _launch(
    form: str,
    batch: AttentionBatch,
    arguments: dict[str, Any],
    given: Launches,
    split: SplitConfig | None = None,
) -> None:
    """Run one form over the step's blocks: an edited one over those alone that edit something.

    Rows that ``split`` takes are left to it, but for heads with key classes of their own, and
    where masses are emitted.
    """
    query = arguments["query"]
    heads, dim = query.shape[1:]
    kv_heads = arguments["key_cache"].shape[2]
    config = given if isinstance(given, PrefillConfig) else (given or {}).get(form)
    config = config or tuning.prefill_config(dim, form, query.dtype)
    emits = form in ("masses", "per_head") and arguments["EMIT"]
    if form == "plain":
        kernel, config = plain_form(config, dim, query.dtype, arguments["CAPPED"])
    else:
        kernel = KERNELS[form]
    if emits and form == "per_head":
        config = emitting(config)
    if config.descriptors:
        triton.set_allocator(scratch)
    edited = form != "plain" and not emits
    aligned = form in ("masses", "values", "scores")
    left_out = split if aligned and not emits else None
    blocks = work_list(batch, config.block_m, query.device, edited, aligned, left_out)
    if not blocks.shape[0]:
        return
    fixed = constants(dim, heads // kv_heads, kv_heads, config)
    arguments = {**arguments, **fixed, "blocks": blocks}
    grid = (heads, blocks.shape[0])
    launch(kernel, grid, arguments, (config.num_warps, config.num_stages))


def plain_form(
    config: PrefillConfig, dim: int, dtype: torch.dtype, capped: bool
) -> tuple[Any, PrefillConfig]:
    """The kernel of plain pairs and its launch; specialised warps are kept where they compile."""
    if not config.specialised:
        return prefill_plain_kernel, config
    if dim == SPECIALISED_DIM and dtype.itemsize == 2 and not capped:
        return prefill_specialised_kernel, replace(config, descriptors=True)
    return prefill_plain_kernel, replace(config, specialised=False, num_warps=2 * config.num_warps)


SPECIALISED_DIM = 128
"""Head dimension with which the compiler makes groups of warps of prefill_specialised.py."""


def emitting(config: PrefillConfig) -> PrefillConfig:
    """How to launch the form that emits, so that it fits the registers: fewer tiles in flight."""
    return replace(config, num_stages=min(2, config.num_stages))


_scratches: dict[int, list[torch.Tensor]] = {}


def scratch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
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
        "KEYS": config.block_keys,
        "DESCRIPTORS": config.descriptors,
    }
