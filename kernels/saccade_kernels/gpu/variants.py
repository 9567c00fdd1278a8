"""Every compiled form of a kernel that serving may ask for, for the offline checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from saccade_kernels.gpu import (
    columns,
    device,
    head_sinks,
    head_weights,
    page_lists,
    saliency,
    tuning,
)
from saccade_kernels.gpu.arguments import POINTERS
from saccade_kernels.gpu.decode_variants import decodes
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
from saccade_kernels.gpu.offline import Variant
from saccade_kernels.gpu.prefill_variants import prefills
from saccade_kernels.gpu.product_variants import product_variants
from saccade_kernels.gpu.residual import residual_kernel, warps_of
from saccade_kernels.gpu.split_variants import splits

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
    yield from itertools.chain(
        layer_variants(), gradient_variants(), decodes(), prefills(), splits()
    )
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
