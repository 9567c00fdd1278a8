"""Triton saliency and gradients of the decodes' rows, for up to 16 losses at once.

The specification is gradients.py. Four launches and two passes over the keys, without atomics and
without reading anything back, so it can be captured and repeats bit for bit:

    class_kernel     each class's maximum, sum and output in one split of the keys; leaves the
                     edited scores, and their slopes, for the second pass
    offset_kernel    merges the splits; per head and class a factor ``~ gain * r_c``, and per loss
                     also an offset: ``dL/dz'_j ~ A_j (factor * (dL/do' . v_j) + offset)``
    saliency_kernel  saliency, and one split's share of grad_query
    gradient_kernel  merges the splits; grad_key and grad_value of the row's own key

A split is a fixed number of keys, so a sequence's results do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton

from saccade_kernels.batch import PAGE, AttentionBatch
from saccade_kernels.gpu import device
from saccade_kernels.gpu.arguments import (
    PER_HEAD_TYPES,
    POINTERS,
    TABLES,
    Variant,
    batch_arguments,
    launch,
)
from saccade_kernels.gpu.saliency_classes import UNSPECIALISED, class_kernel, offset_kernel
from saccade_kernels.gpu.saliency_rows import gradient_kernel, saliency_kernel
from saccade_kernels.gpu.tiles import needs_upcast
from saccade_kernels.gradients import MOST_LOSSES, RowGradients, empty_gradients

SPLIT = 256
"""Keys of a split: enough blocks for one sequence, and partial results are a few percent of it."""


def saliency(
    query: torch.Tensor,
    grad_output: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    layer: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
) -> RowGradients:
    """:func:`saccade_kernels.gradients.saliency` in Triton; query and caches share a dtype."""
    seqs, losses, heads, dim = grad_output.shape
    assert losses <= MOST_LOSSES
    kv_heads, width, edited = key_cache.shape[2], batch.max_context, bool(batch.edit(layer))
    if seqs == 0 or losses == 0 or width == 0:
        return empty_gradients(grad_output, kv_heads, width, torch.float32)
    shape = shape_of(heads, kv_heads, dim, losses, batch.classes if edited else 1, query.dtype)
    sloped, pages, splits = edited or softcap > 0, -(-width // PAGE), -(-width // SPLIT)

    def new(*size: int) -> torch.Tensor:
        return query.new_empty(size, dtype=torch.float32)

    of_keys = (seqs, losses, kv_heads, dim)
    made = RowGradients(
        saliency=new(seqs, losses, heads, pages * PAGE)[..., :width],
        grad_query=grad_output.new_empty(grad_output.shape),
        grad_key=grad_output.new_empty(of_keys),
        grad_value=grad_output.new_empty(of_keys),
    )
    tensors = {
        "query": query,
        "grad_output": grad_output.contiguous(),
        "key_cache": key_cache,
        "value_cache": value_cache,
        "scores": new(seqs, heads, pages, PAGE),
        "slopes": new(seqs, heads, pages, PAGE) if sloped else None,
        "part_max": new(seqs, heads, splits, shape["C"]),
        "part_sum": new(seqs, heads, splits, shape["C"]),
        "part_out": new(seqs, heads, splits, shape["C"], dim),
        "tops": new(seqs, heads),
        "factors": new(seqs, heads, shape["C"]),
        "offsets": new(seqs, losses, heads, shape["C"]),
        "part_query": new(seqs, losses, heads, splits, dim),
        "saliency": made.saliency,
        "grad_query": made.grad_query,
        "grad_key": made.grad_key,
        "grad_value": made.grad_value,
    }
    numbers = {
        "scale": scale,
        "cap": softcap,
        "window": window,
        "losses": losses,
        "splits": splits,
        "max_pages": pages,
        "stride_token": query.stride(0),
        "stride_head": query.stride(1),
    }
    flags = {"EDITED": edited, "CAPPED": softcap > 0, "SLOPED": sloped}
    flags["PER_HEAD"] = edited and batch.per_head_classes
    constants = {**shape, **flags, "UPCAST": needs_upcast(query.dtype)}
    for kernel, grid in (
        (class_kernel, (splits, kv_heads * shape["CLASS_TILES"], seqs)),
        (offset_kernel, (heads, seqs)),
        (saliency_kernel, (splits, kv_heads * shape["LOSS_TILES"], seqs)),
        (gradient_kernel, (kv_heads, losses, seqs)),
    ):
        own = constants | {"ROWS": rows_of(kernel, shape)}
        arguments = batch_arguments(batch, layer, edited) | tensors | numbers | own
        config = launch_of(kernel, own["ROWS"], shape["DP"], query.dtype)
        launch(kernel, grid, arguments, config)
    return made


def shape_of(
    heads: int, kv_heads: int, dim: int, losses: int, classes: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Sizes of a model's kernels; classes and rows of a tile are powers of two."""
    power, group = triton.next_power_of_2, heads // kv_heads
    padded, classes = max(16, power(dim)), power(classes)
    most = 32 if dtype.itemsize == 2 else 16  # more would not fit the registers
    if padded > 128 and device.running().has_little_shared_memory:
        most = 16
    class_rows = min(most, max(16, power(group * classes)))
    loss_rows = min(most, max(16, power(group * losses)))
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "D": dim,
        "DP": padded,
        "C": classes,
        "SPLIT": SPLIT,
        "LOSSES": MOST_LOSSES,
        "CLASS_ROWS": class_rows,
        "CLASS_TILES": -(-group * classes // class_rows),
        "LOSS_ROWS": loss_rows,
        "LOSS_TILES": -(-group * losses // loss_rows),
    }


def rows_of(kernel: Any, shape: dict[str, Any]) -> int:
    """Rows of a kernel's tile."""
    if kernel is class_kernel:
        return int(shape["CLASS_ROWS"])
    if kernel is saliency_kernel:
        return int(shape["LOSS_ROWS"])
    return int(triton.next_power_of_2(shape["GROUP"]))


def launch_of(kernel: Any, rows: int, padded: int, dtype: torch.dtype) -> tuple[int, int]:
    """Warps and stages; chosen by the compiled code, not measured on a GPU yet."""
    if kernel is offset_kernel:
        return 8, 3
    if kernel is gradient_kernel:
        return 4, 3
    little = device.running().has_little_shared_memory
    if dtype.itemsize == 4:
        warps = 16 if padded > 128 else 8
        stages = 1 if padded > 128 and little else 2
        return 4 if kernel is saliency_kernel and padded <= 64 else warps, stages
    few = padded > 128 or little
    return 8 if rows > 16 or padded > 128 else 4, 2 if few else 3


KERNELS = (class_kernel, offset_kernel, saliency_kernel, gradient_kernel)


def variants() -> Iterator[Variant]:
    """The compiled forms that serving may ask for, for the offline checks."""
    for dim, group, classes in product((64, 128, 256), (1, 7), (0, 8)):
        yield from _variants(torch.bfloat16, dim, group, classes)
    for group in (4, 8):
        yield from _variants(torch.bfloat16, 128, group, 8)
    for group, classes in product((1, 7), (1, 2, 4)):
        yield from _variants(torch.bfloat16, 128, group, classes)
    for dim, group in product((80, 96), (1, 7)):
        yield from _variants(torch.bfloat16, dim, group, 8)
    for dtype, dim, classes in product((torch.float16, torch.float32), (64, 128, 256), (0, 8)):
        yield from _variants(dtype, dim, 7, classes)
    for classes in (0, 4):
        yield from _variants(torch.bfloat16, 256, 2, classes, capped=True)
    for group, classes in ((1, 2), (7, 4)):
        yield from _variants(torch.bfloat16, 128, group, classes, per_head_classes=True)


def _variants(
    dtype: torch.dtype,
    dim: int,
    group: int,
    classes: int,
    capped: bool = False,
    per_head_classes: bool = False,
) -> Iterator[Variant]:
    """All kernels of one shape, for any number of losses; 0 classes mean the plain form."""
    edited, kv_heads, most = classes > 0, 4, max(classes, 1)
    flags = {"EDITED": edited, "CAPPED": capped, "SLOPED": edited or capped, "UPCAST": False}
    flags["PER_HEAD"] = per_head_classes
    cache, integers = POINTERS[dtype], ("context_lens", "page_table", "control_rows", "tag_rows")
    name = (
        f"d{dim}-g{group}-c{classes}-{cache[1:]}"
        + "-capped" * capped
        + "-per-head" * per_head_classes
    )
    seen = set()
    for kernel, losses in product(KERNELS, (1, 5, MOST_LOSSES)):
        shape = shape_of(group * kv_heads, kv_heads, dim, losses, most, dtype)
        rows = rows_of(kernel, shape)
        if (kernel, rows) in seen:
            continue
        seen.add((kernel, rows))
        if per_head_classes and kernel is offset_kernel:
            continue  # it does not look at keys
        types: dict[str, str | None] = dict.fromkeys(kernel.arg_names, "*fp32")
        types |= dict.fromkeys(UNSPECIALISED, "i32") | dict.fromkeys(integers, "*i32")
        types |= dict.fromkeys(("query", "key_cache", "value_cache", "grad_output"), cache)
        types |= dict.fromkeys(("grad_query", "grad_key", "grad_value"), cache)
        types |= {"scale": "fp32", "cap": "fp32", "tags": "*u8"}
        types |= {} if edited else dict.fromkeys(TABLES)
        types |= PER_HEAD_TYPES if per_head_classes else dict.fromkeys(PER_HEAD_TYPES)
        types |= {} if flags["SLOPED"] else {"slopes": None}
        config = launch_of(kernel, rows, shape["DP"], dtype)
        short = kernel.__name__.removesuffix("_kernel")
        yield f"{short}{rows}-{name}", kernel, types, shape | flags | {"ROWS": rows}, *config
