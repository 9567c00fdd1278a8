"""Every compiled form of a kernel that serving may ask for, for the offline checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch

from saccade_kernels.gpu import (
    columns,
    device,
    head_sinks,
    head_weights,
    page_lists,
    saliency,
    tuning,
)
from saccade_kernels.gpu.arguments import PER_HEAD_TYPES, POINTERS, TABLE_TYPES
from saccade_kernels.gpu.decode import PER_HEAD_KEYS, shape_of, split_kernel, with_per_head_classes
from saccade_kernels.gpu.distributions import (
    BLOCK,
    PARTS,
    WARPS,
    contrast_kernel,
    divergence_kernel,
    mask_kernel,
    parts_kernel,
)
from saccade_kernels.gpu.gradient_variants import gradient_variants
from saccade_kernels.gpu.layer_variants import HIDDEN_SIZES, layer_variants
from saccade_kernels.gpu.merge import MERGE_WARPS, UNALIGNED, UNSPECIALISED, merge_kernel
from saccade_kernels.gpu.offline import Variant
from saccade_kernels.gpu.prefill_variants import prefills
from saccade_kernels.gpu.product_variants import product_variants
from saccade_kernels.gpu.residual import residual_kernel, warps_of
from saccade_kernels.gpu.tuning import decode_config

HEAD_DIMS = (64, 80, 96, 128, 256)
GROUPS = (1, 2, 4, 7, 8)
KV_HEADS = 4
VOCABULARIES = (32064, 152064, 262208)


def shipped(capability: int = device.ASSUMED) -> Iterator[Variant]:
    """All of them, as GPUs of a capability launch them, and as cards of it want them otherwise."""
    forms = _of_chip(tuning.named(capability))
    yield from forms
    usual = {form.name: form for form in forms}
    for card in tuning.cards(capability):
        for form in _of_chip(card):
            if form != usual[form.name]:
                yield replace(form, name=f"{form.name}-{card}")


def _of_chip(chip: str) -> list[Variant]:
    with tuning.on(chip):
        return list(_all())


def _all() -> Iterator[Variant]:
    yield from _residuals()
    yield from _distributions()
    yield from itertools.chain(layer_variants(), gradient_variants(), _decodes(), prefills())
    yield from product_variants()
    for part in (saliency, columns, head_sinks, head_weights, page_lists):
        yield from (Variant(*found) for found in part.variants())


def _residuals() -> Iterator[Variant]:
    for dtype, size in itertools.product(POINTERS, HIDDEN_SIZES):
        types = dict.fromkeys(("hidden", "output"), POINTERS[dtype])
        types |= dict.fromkeys(("bank", "numbers"), "*fp32")
        types |= dict.fromkeys(("rows", "count", "reads", "writes", "flags"), "*i32")
        types |= dict.fromkeys(("site", "sites"), "i32")
        constants = {"D": size, "BLOCK": 1 << (size - 1).bit_length()}
        name = f"residual-d{size}-{POINTERS[dtype][1:]}"
        yield Variant(name, residual_kernel, types, constants, warps_of(size), 3)


def _distributions() -> Iterator[Variant]:
    for kind, width in itertools.product(POINTERS.values(), VOCABULARIES):
        indices = ("rows", "own", "other", "owners")
        sums = ("own_highest", "own_sums", "other_highest", "other_sums", "highest", "sums")
        types: dict[str, str | None] = dict.fromkeys(indices, "*i64")
        types |= dict.fromkeys((*sums, "output"), "*fp32")
        types |= {"is_jsd": "*u8", "numbers": "*fp64", "others": kind}
        constants = {"WIDTH": width, "PARTS": PARTS, "BLOCK": BLOCK}
        for name, kernel, logits in (
            ("parts", parts_kernel, kind),
            ("contrast", contrast_kernel, "*fp32"),
            ("divergence", divergence_kernel, "*fp32"),
        ):
            own = types | {"logits": logits}
            yield Variant(f"{name}-v{width}-{kind[1:]}", kernel, own, constants, WARPS, 3)
    for width in VOCABULARIES:
        masks = dict.fromkeys(("rows", "which"), "*i64") | {"logits": "*fp32", "allowed": "*i32"}
        constants = {"WIDTH": width, "PARTS": PARTS, "BLOCK": BLOCK}
        yield Variant(f"mask-v{width}", mask_kernel, masks, constants, WARPS, 3)


def _decodes() -> Iterator[Variant]:
    for dim, classes in itertools.product(HEAD_DIMS, (0, 1, 2, 4, 8)):
        # Groups of 2 and 4 have no tile that those of 1 and 8 have not.
        for group in GROUPS if dim == 128 else (1, 7, 8):
            yield from _decode(torch.bfloat16, dim, group, classes)
    for dtype, dim, group, classes in itertools.product(
        (torch.float16, torch.float32), (64, 128, 256), (1, 7), (0, 8)
    ):
        yield from _decode(dtype, dim, group, classes)
    for classes in (0, 4):
        yield from _decode(torch.bfloat16, 256, 2, classes, capped=True)
    for dim, group, classes in itertools.product(HEAD_DIMS, (1, 7), (1, 8)):
        yield from _decode(torch.bfloat16, dim, group, classes, emit=True)
    # With heads apart: one of each number of rows of a tile, and of each kind of element.
    for dim, group, classes in ((64, 4, 4), (128, 1, 2), (128, 7, 4), (128, 8, 8), (256, 2, 4)):
        yield from _decode(torch.bfloat16, dim, group, classes, per_head_classes=True)
    yield from _decode(torch.float32, 128, 1, 2, per_head_classes=True)
    yield from _decode(torch.bfloat16, 128, 7, 4, emit=True, per_head_classes=True)


def _decode(
    dtype: torch.dtype,
    dim: int,
    group: int,
    classes: int,
    capped: bool = False,
    emit: bool = False,
    per_head_classes: bool = False,
) -> Iterator[Variant]:
    """The kernels of one shape; 0 classes mean the plain form."""
    edited = classes > 0
    shape = shape_of(group * KV_HEADS, KV_HEADS, dim, max(classes, 1))
    config = decode_config(dim, shape["ROWS"], dtype)
    config = with_per_head_classes(config) if per_head_classes else config
    shape["ROWS"] = min(shape["ROWS"], config.block_rows)
    constants = {**shape, "SPLIT": config.split, "MAX_SPLITS": config.max_splits}
    constants |= {"KEYS": config.block_keys, "EDITED": edited, "EMIT": emit}
    constants |= {
        "PER_HEAD": per_head_classes,
        "PER_HEAD_KEYS": min(PER_HEAD_KEYS, config.block_keys),
    }
    constants |= {"CAPPED": capped, "UPCAST": False}
    types: dict[str, str | None] = dict.fromkeys(UNSPECIALISED, "i32")
    types |= dict.fromkeys(UNALIGNED, "*i32") | {"scale": "fp32", "cap": "fp32"}
    types |= dict.fromkeys(("masses", "lse"), "*fp32" if emit else None)
    types |= dict.fromkeys(("part_max", "part_sum", "part_out"), "*fp32")
    types |= TABLE_TYPES if edited else dict.fromkeys(TABLE_TYPES)
    types |= PER_HEAD_TYPES if per_head_classes else dict.fromkeys(PER_HEAD_TYPES)
    types |= dict.fromkeys(("query", "key_cache", "value_cache", "output"), POINTERS[dtype])
    name = f"d{dim}-g{group}-c{classes}-{POINTERS[dtype][1:]}" + "-capped" * capped + "-emit" * emit
    name += "-per-head" * per_head_classes
    warps, stages = config.num_warps, config.num_stages
    yield Variant(f"decode-{name}", split_kernel, types, constants, warps, stages)
    if group == 7 or capped or emit:  # to the merge it is a factor in an address
        yield Variant(f"merge-{name}", merge_kernel, types, constants, MERGE_WARPS, 3)
