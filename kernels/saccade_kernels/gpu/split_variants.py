"""Every compiled form of a prefill's question rows that serving may ask for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from saccade_kernels.gpu.arguments import PER_HEAD_TYPES, POINTERS, TABLE_TYPES
from saccade_kernels.gpu.merge import MERGE_WARPS
from saccade_kernels.gpu.merge_rows import merge_rows_kernel
from saccade_kernels.gpu.offline import Variant
from saccade_kernels.gpu.prefill_split import UNSPECIALISED, constants, prefill_split_kernel
from saccade_kernels.gpu.prefill_variants import GROUP, HEAD_DIMS, KV_HEADS
from saccade_kernels.gpu.tuning import split_config


def splits() -> Iterator[Variant]:
    """Question rows split over their keys, and their merge."""
    for dtype, dim in itertools.product(POINTERS, HEAD_DIMS):
        yield from split(dtype, dim, 4)
    for dim, classes in itertools.product((64, 128, 256), (1, 2, 8)):
        yield from split(torch.bfloat16, dim, classes)
    for dim in (128, 256):
        yield from split(torch.bfloat16, dim, 4, capped=True)
    for dim in (64, 128, 256):
        yield from split(torch.bfloat16, dim, 4, per_head_classes=True)


def split(
    dtype: torch.dtype,
    dim: int,
    classes: int,
    capped: bool = False,
    per_head_classes: bool = False,
) -> Iterator[Variant]:
    """Both kernels of one form; and the merge where masses are emitted, which also counts them."""
    config = split_config(dim, dtype)
    types: dict[str, str | None] = dict.fromkeys(UNSPECIALISED, "i32")
    types |= TABLE_TYPES | dict.fromkeys(("whole", "keys", "before"), "*i32")
    types |= PER_HEAD_TYPES if per_head_classes else dict.fromkeys(PER_HEAD_TYPES)
    types |= {"scale": "fp32", "cap": "fp32"}
    types |= dict.fromkeys(("items", "rows", "tag_rows"), "*i32")
    types |= dict.fromkeys(("part_max", "part_sum", "part_out"), "*fp32")
    types |= dict.fromkeys(("query", "key_cache", "value_cache", "output"), POINTERS[dtype])
    fixed = constants(dim, GROUP * KV_HEADS, KV_HEADS, classes, config)
    fixed |= {"CAPPED": capped, "PER_HEAD": per_head_classes, "UPCAST": False, "COUNTS": True}
    kind = f"c{classes}" + "-capped" * capped + "-per-head" * per_head_classes
    name = f"d{dim}-{POINTERS[dtype][1:]}-{kind}"
    launch = config.num_warps, config.num_stages
    yield Variant(f"prefill-split-{name}", prefill_split_kernel, types, fixed, *launch)
    if not capped:  # of which the merge sees nothing
        yield Variant(f"merge-rows-{name}", merge_rows_kernel, types, fixed, MERGE_WARPS, 3)
    if dtype == torch.bfloat16 and classes == 4 and not capped:
        fixed = fixed | {"COUNTS": False}
        yield Variant(f"merge-rows-{name}-emit", merge_rows_kernel, types, fixed, MERGE_WARPS, 3)
