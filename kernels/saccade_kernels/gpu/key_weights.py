"""Weights of single keys in a score edit: sum_s weight_s beta_sj of a tile's rows and keys.

Almost no program has any. A tile's rows are asked once, before its loop; where none has a weight
nothing is read, and where some have, both factors are read anew in every tile, for registers are
dearer than the cache.

    betas    [slots, max_len] of a sequence: 4 bytes a key and slot, read once a tile
    weights  4 bytes a row and slot, read once a tile
    products one a row, key and slot
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from saccade_kernels import controls
from saccade_kernels.gpu.tiles import LOG2E

KEY_WEIGHTS = tl.constexpr(controls.KEY_WEIGHTS)


class KeyWeights(NamedTuple):
    """What the rows of a tile, or one head, make of the betas of one sequence."""

    table: Any  # pointer to the weights of all programs
    site: Any  # (control row * layers + layer) * heads + head, of each row or of one head
    used: Any  # whether any weight of these is not 0
    betas: Any  # pointer to the sequence's first beta
    max_len: Any  # from a slot's betas to the next one's


@triton.jit
def key_weights_of(table, site, mask, key_weights, tag_row, max_len):
    """The :class:`KeyWeights` of rows of one sequence, those where ``mask`` is.

    The other rows must have no weights either, or must not be looked at.
    """
    slots = tl.arange(0, KEY_WEIGHTS)
    if len(site.shape) > 0:
        at = (site * KEY_WEIGHTS)[:, None] + slots[None, :]
        own = tl.load(table + at, mask=mask[:, None], other=0.0)
        used = tl.max(tl.max((own != 0).to(tl.int32), 1), 0) != 0
    else:
        own = tl.load(table + site * KEY_WEIGHTS + slots)
        used = tl.max((own != 0).to(tl.int32), 0) != 0
    return KeyWeights(table, site, used, key_weights + tag_row * (KEY_WEIGHTS * max_len), max_len)


@triton.jit
def weigh_rows(score, weights, mask, position, present):
    """Edited scores (base 2) [rows, keys] with what weights of the rows in ``mask`` add."""
    if weights.used:
        for slot in tl.static_range(KEY_WEIGHTS):
            own = tl.load(weights.table + weights.site * KEY_WEIGHTS + slot, mask=mask, other=0.0)
            at = weights.betas + slot * weights.max_len + position
            beta = tl.load(at, mask=present, other=0.0)
            score += (own * LOG2E)[:, None] * beta[None, :]
    return score


@triton.jit
def weigh_keys(weights, position, present):
    """What one head's weights add to its scores (base 2), float32 [keys].

    A reduction, where a chain of additions would do: the compiler repeats such a chain in every
    thread for all the keys it has scores of.
    """
    slots = tl.arange(0, KEY_WEIGHTS)
    at = weights.table + weights.site * KEY_WEIGHTS + slots
    own = tl.load(at, mask=weights.used, other=0.0) * LOG2E
    at = weights.betas + slots[None, :] * weights.max_len + position[:, None]
    betas = tl.load(at, mask=present[:, None] & weights.used, other=0.0)
    return tl.sum(own[None, :] * betas, 1)
