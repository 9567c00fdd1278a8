"""Every compiled form of the prefill that serving may ask for, for the offline checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from saccade_kernels.gpu.arguments import PER_HEAD_TYPES, POINTERS, TABLE_TYPES
from saccade_kernels.gpu.offline import Variant
from saccade_kernels.gpu.prefill import UNSPECIALISED, constants, emitting, prefill_kernel
from saccade_kernels.gpu.tuning import PrefillConfig, prefill_config

HEAD_DIMS = (64, 80, 96, 128, 256)
GROUP, KV_HEADS = 4, 8


def prefills() -> Iterator[Variant]:
    """All of them, launched as tuning.json says."""
    for dtype, dim, edited in itertools.product(POINTERS, HEAD_DIMS, (False, True)):
        yield variant(dtype, dim, edited, prefill_config(dim, edited, dtype))
    for dim in (128, 256):
        for form in ({"capped": True}, {"emit": True}, {"capped": True, "emit": True}):
            edited = "emit" in form
            config = prefill_config(dim, edited, torch.bfloat16)
            yield variant(torch.bfloat16, dim, edited, config, **form)
        config = prefill_config(dim, True, torch.bfloat16)
        yield variant(torch.bfloat16, dim, True, config, capped=True)
    for dim in (64, 128, 256):
        config = prefill_config(dim, True, torch.bfloat16)
        yield variant(torch.bfloat16, dim, True, config, per_head_classes=True)


def variant(
    dtype: torch.dtype,
    dim: int,
    edited: bool,
    config: PrefillConfig,
    capped: bool = False,
    emit: bool = False,
    per_head_classes: bool = False,
) -> Variant:
    """One form of the kernel. How many classes a batch has makes no difference to it."""
    config = emitting(config) if emit else config
    types: dict[str, str | None] = dict.fromkeys(UNSPECIALISED, "i32")
    types |= {"scale": "fp32", "cap": "fp32"}
    types |= dict.fromkeys(("blocks", "page_table", "tag_rows"), "*i32")
    types |= dict.fromkeys(("masses", "lse"), "*fp32" if emit else None)
    types |= TABLE_TYPES if edited else dict.fromkeys(TABLE_TYPES)
    types |= PER_HEAD_TYPES if per_head_classes else dict.fromkeys(PER_HEAD_TYPES)
    types |= dict.fromkeys(("query", "key_cache", "value_cache", "output"), POINTERS[dtype])
    fixed = constants(dim, GROUP, KV_HEADS, config)
    fixed |= {"EDITED": edited, "EMIT": emit, "CAPPED": capped, "UPCAST": False}
    fixed["PER_HEAD"] = per_head_classes
    kind = (
        ("edited" if edited else "plain")
        + "-capped" * capped
        + "-emit" * emit
        + "-per-head" * per_head_classes
    )
    name = f"prefill-d{dim}-{POINTERS[dtype][1:]}-{kind}"
    return Variant(name, prefill_kernel, types, fixed, config.num_warps, config.num_stages)
