"""The compiled forms of the decode: pages by class, key classes of single heads, the merge."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from saccade_kernels.gpu.arguments import PER_HEAD_TYPES, POINTERS, TABLE_TYPES
from saccade_kernels.gpu.decode import form_of, shape_of, split_kernel
from saccade_kernels.gpu.decode_per_head import per_head_config, per_head_kernel, per_head_shape
from saccade_kernels.gpu.merge import (
    MERGE_STAGES,
    MERGE_WARPS,
    UNALIGNED,
    UNSPECIALISED,
    merge_kernel,
    merge_shape,
)
from saccade_kernels.gpu.offline import Variant
from saccade_kernels.gpu.page_classes import PAGES, WARPS, page_classes_kernel
from saccade_kernels.gpu.tuning import DecodeConfig, decode_config

HEAD_DIMS = (64, 80, 96, 128, 256)
GROUPS = (1, 2, 4, 7, 8)
KV_HEADS = 4

HALF, FLOAT = torch.bfloat16, torch.float32


def decodes() -> Iterator[Variant]:
    """All of them."""
    yield Variant(
        "page-classes", page_classes_kernel, _types(HALF, True), {"PAGES": PAGES}, WARPS, 3
    )
    for dim in HEAD_DIMS:
        # Groups of 2 and 4 have no tile that those of 1 and 8 have not.
        for group, edited in itertools.product(GROUPS if dim == 128 else (1, 7), (False, True)):
            yield from _decode(HALF, dim, group, edited)
        yield from _decode(HALF, dim, 7, True, emit=True)
    for dtype, dim, group in itertools.product((torch.float16, FLOAT), (64, 128, 256), (1, 7)):
        for edited in (False, True):
            yield from _decode(dtype, dim, group, edited)
    for edited in (False, True):
        yield from _decode(HALF, 256, 2, edited, capped=True)
    # With heads apart: one of each number of rows of a tile, and of each kind of element.
    for dim, group, classes in ((64, 4, 4), (128, 1, 2), (128, 7, 4), (128, 8, 8), (256, 2, 4)):
        yield from _per_head(HALF, dim, group, classes)
    yield from _per_head(FLOAT, 128, 1, 2)
    yield from _per_head(HALF, 128, 7, 4, emit=True)


def _decode(
    dtype: torch.dtype, dim: int, group: int, edited: bool, capped: bool = False, emit: bool = False
) -> Iterator[Variant]:
    """The kernels of one shape."""
    config = decode_config(dim, group, edited, dtype)
    constants = shape_of(group * KV_HEADS, KV_HEADS, dim, edited)
    constants |= form_of(config, edited, emit, capped, dtype)
    name = f"d{dim}-g{group}-{POINTERS[dtype][1:]}-" + ("edited" if edited else "plain")
    name += "-capped" * capped + "-emit" * emit
    types = _types(dtype, edited, emit)
    yield _variant(f"decode-{name}", split_kernel, types, constants, config)
    if group == 7 or capped or emit:  # to the merge it is a factor in an address
        constants |= merge_shape(config.max_splits)
        warps = (MERGE_WARPS, MERGE_STAGES)
        yield Variant(f"merge-{name}", merge_kernel, types, constants, *warps)


def _per_head(
    dtype: torch.dtype, dim: int, group: int, classes: int, emit: bool = False
) -> Iterator[Variant]:
    """The kernel of one shape whose heads have classes of their own."""
    config = per_head_config(decode_config(dim, group, True, dtype))
    constants = shape_of(group * KV_HEADS, KV_HEADS, dim, True)
    constants |= form_of(config, True, emit, False, dtype)
    constants |= per_head_shape(constants, classes, config)
    name = f"decode-d{dim}-g{group}-c{classes}-{POINTERS[dtype][1:]}-per-head" + "-emit" * emit
    types = _types(dtype, True, emit) | PER_HEAD_TYPES
    yield _variant(name, per_head_kernel, types, constants, config)
    if group == 7:
        constants |= merge_shape(config.max_splits)
        own = name.replace("decode-", "merge-")
        yield Variant(own, merge_kernel, types, constants, MERGE_WARPS, MERGE_STAGES)


def _variant(
    name: str, kernel: Any, types: dict[str, str | None], constants: dict[str, int],
    config: DecodeConfig,
) -> Variant:  # fmt: skip
    launch = (config.num_warps, config.num_stages, config.max_registers)
    return Variant(name, kernel, types, constants, *launch)


def _types(dtype: torch.dtype, edited: bool, emit: bool = False) -> dict[str, str | None]:
    """Triton's types of all arguments of all these kernels."""
    types: dict[str, str | None] = dict.fromkeys((*UNSPECIALISED, "pages"), "i32")
    types |= dict.fromkeys(UNALIGNED, "*i32") | {"scale": "fp32", "cap": "fp32"}
    types |= dict.fromkeys(("masses", "lse"), "*fp32" if emit else None)
    types |= dict.fromkeys(("part_max", "part_sum", "part_out"), "*fp32")
    types |= TABLE_TYPES if edited else dict.fromkeys(TABLE_TYPES)
    types |= dict.fromkeys(("page_words", "words"), "*i16" if edited else None)
    return types | dict.fromkeys(("query", "key_cache", "value_cache", "output"), POINTERS[dtype])
