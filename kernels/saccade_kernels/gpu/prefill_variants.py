"""Every compiled form of the prefill that serving may ask for, for the offline checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from saccade_kernels.gpu import tuning
from saccade_kernels.gpu.arguments import PER_HEAD_TYPES, POINTERS, TABLE_TYPES
from saccade_kernels.gpu.offline import Variant
from saccade_kernels.gpu.prefill import constants, emitting, plain_form
from saccade_kernels.gpu.prefill_blocks import UNSPECIALISED
from saccade_kernels.gpu.prefill_classes import UNSPECIALISED as OF_LISTS
from saccade_kernels.gpu.prefill_masses import prefill_masses_kernel
from saccade_kernels.gpu.prefill_per_head import prefill_per_head_kernel
from saccade_kernels.gpu.prefill_values import prefill_values_kernel
from saccade_kernels.gpu.tuning import PLAIN_CANDIDATES, PrefillConfig, prefill_config

HEAD_DIMS = (64, 80, 96, 128, 256)
GROUP, KV_HEADS = 4, 8


def prefills() -> Iterator[Variant]:
    """All of them, launched as tuning.json says."""
    for dtype, dim in itertools.product(POINTERS, HEAD_DIMS):
        yield plain(dtype, dim)
        yield plain(dtype, dim, beside=True)
        yield per_head(dtype, dim)
        yield masses(dtype, dim)
        yield from (values(dtype, dim, score) for score in (False, True))
    for dim in (128, 256):
        for capped in (False, True):
            yield masses(torch.bfloat16, dim, capped, emit=True)
        yield masses(torch.bfloat16, dim, capped=True)
        yield from (values(torch.bfloat16, dim, score, capped=True) for score in (False, True))
        yield plain(torch.bfloat16, dim, capped=True)
        yield plain(torch.bfloat16, dim, beside=True, capped=True)
        yield per_head(torch.bfloat16, dim, emit=True)
        yield per_head(torch.bfloat16, dim, capped=True, emit=True)
        yield per_head(torch.bfloat16, dim, capped=True)
    for dim in (64, 128, 256):
        yield per_head(torch.bfloat16, dim, per_head_classes=True)
        yield masses(torch.bfloat16, dim, per_head_classes=True)
        yield values(torch.bfloat16, dim, False, per_head_classes=True)
        yield per_head(torch.bfloat16, dim, emit=True, per_head_classes=True)
        yield masses(torch.bfloat16, dim, emit=True, per_head_classes=True)
    if tuning.capability_of(tuning.chip()) == 90:
        yield from _candidates()


def _candidates() -> Iterator[Variant]:
    """Other launches of the plain form, between which benchmarks/gpu/tune.py decides on a GPU."""
    for name, config in PLAIN_CANDIDATES.items():
        for beside in (False, True):
            form = plain(torch.bfloat16, 128, beside, config=config)
            yield replace(form, name=f"{form.name}-{name}")


def plain(
    dtype: torch.dtype,
    dim: int,
    beside: bool = False,
    capped: bool = False,
    config: PrefillConfig | None = None,
) -> Variant:
    """The plain kernel, alone or beside edits; by default as tuning.json launches it."""
    config = config or prefill_config(dim, "plain", dtype)
    kernel, config = plain_form(config, dim, dtype, capped)
    kind = "plain" + "-beside" * beside + "-capped" * capped
    types: dict[str, str | None] = dict.fromkeys(TABLE_TYPES)
    types |= TABLE_TYPES if beside else {}
    fixed = {"BESIDE": beside, "CAPPED": capped}
    return _variant(kernel, kind, config, dtype, dim, types, fixed)


def per_head(
    dtype: torch.dtype,
    dim: int,
    capped: bool = False,
    emit: bool = False,
    per_head_classes: bool = False,
) -> Variant:
    """The kernel of two passes. How many classes a batch has makes no difference to it."""
    kind = "edited" + "-capped" * capped + "-emit" * emit + "-per-head" * per_head_classes
    types: dict[str, str | None] = dict(TABLE_TYPES)
    types |= dict.fromkeys(("masses", "lse"), "*fp32" if emit else None)
    types |= PER_HEAD_TYPES if per_head_classes else dict.fromkeys(PER_HEAD_TYPES)
    fixed = {"EMIT": emit, "CAPPED": capped, "PER_HEAD": per_head_classes}
    config = prefill_config(dim, "per_head", dtype)
    config = emitting(config) if emit else config
    return _variant(prefill_per_head_kernel, kind, config, dtype, dim, types, fixed)


def masses(
    dtype: torch.dtype,
    dim: int,
    capped: bool = False,
    emit: bool = False,
    per_head_classes: bool = False,
) -> Variant:
    """The first launch of a mass edit."""
    kind = "masses" + "-capped" * capped + "-emit" * emit + "-per-head" * per_head_classes
    types = _list_types(per_head_classes)
    types |= dict.fromkeys(("masses", "lse"), "*fp32" if emit else None)
    fixed = {"EMIT": emit, "CAPPED": capped, "PER_HEAD": per_head_classes}
    config = prefill_config(dim, "masses", dtype)
    return _variant(prefill_masses_kernel, kind, config, dtype, dim, types, fixed)


def values(
    dtype: torch.dtype,
    dim: int,
    score: bool,
    capped: bool = False,
    per_head_classes: bool = False,
) -> Variant:
    """Its second launch, or the one launch of a score edit."""
    form = "scores" if score else "values"
    kind = form + "-capped" * capped + "-per-head" * per_head_classes
    fixed = {"SCORE": score, "CAPPED": capped, "PER_HEAD": per_head_classes}
    types = _list_types(per_head_classes)
    config = prefill_config(dim, form, dtype)
    return _variant(prefill_values_kernel, kind, config, dtype, dim, types, fixed)


def _list_types(per_head_classes: bool) -> dict[str, str | None]:
    types: dict[str, str | None] = dict(TABLE_TYPES)
    types |= PER_HEAD_TYPES if per_head_classes else dict.fromkeys(PER_HEAD_TYPES)
    types |= dict.fromkeys(("whole", "keys", "before"), "*i32")
    return types | dict.fromkeys(("levels", "norms"), "*fp32")


def _variant(
    kernel: Any,
    kind: str,
    config: PrefillConfig,
    dtype: torch.dtype,
    dim: int,
    tables: dict[str, str | None],
    more: dict[str, bool],
) -> Variant:
    types: dict[str, str | None] = dict.fromkeys((*UNSPECIALISED, *OF_LISTS, "beside"), "i32")
    types |= {"scale": "fp32", "cap": "fp32"}
    types |= dict.fromkeys(("blocks", "page_table", "tag_rows"), "*i32")
    types |= dict.fromkeys(("query", "key_cache", "value_cache", "output"), POINTERS[dtype])
    fixed = constants(dim, GROUP, KV_HEADS, config) | more | {"UPCAST": False}
    name = f"prefill-d{dim}-{POINTERS[dtype][1:]}-{kind}"
    return Variant(name, kernel, types | tables, fixed, config.num_warps, config.num_stages)
