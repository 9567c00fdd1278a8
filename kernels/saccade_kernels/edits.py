"""Score and mass edits in plain PyTorch: what a program does to one softmax row.

``..._tables`` reads what a group of query rows needs from the control tables, for all layers of a
step at once, and ``apply_...`` does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from saccade_kernels.controls import CLASSES
from saccade_kernels.tables import ControlTables, PerHeadTable

LARGEST_RATIO = 1e30
"""A class that would have to grow more than this counts as empty: float32 ends soon after."""

MOVED = 1e-5
"""A class's mass has changed if it did by more than this share of itself: less may be rounding."""

LayerTables = tuple[torch.Tensor, torch.Tensor]
"""What one layer's score or mass edit needs, for one group of query rows."""

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``torch.bmm``, or one that sums in a fixed order (fixed_tiles.py)."""


def edit_scores(
    scores: torch.Tensor,
    controls: ControlTables,
    rows: torch.Tensor,
    tags: torch.Tensor,
    weights: torch.Tensor,
    layer: int,
) -> torch.Tensor:
    """Apply the score edit of each query row's program.

    Args:
        scores: [seqs, heads, queries, keys].
        rows: control row of each query, int [seqs, queries].
        tags: key classes, integers [seqs, keys] below :data:`CLASSES`.
        weights: betas of each key, float32 [seqs, KEY_WEIGHTS, keys].
    """
    tables = score_tables(controls, rows, slice(layer, layer + 1))[0]
    return apply_scores(scores, *tables, class_members(tags, scores.dtype), weights)


def score_tables(controls: ControlTables, rows: torch.Tensor, layers: slice) -> list[LayerTables]:
    """Scale, absolute and bias [seqs, 3 H Q, C] and weights [seqs, H Q, KEY_WEIGHTS], per layer."""
    # Minus infinity, written to knock a class out, would be NaN times the zeros of a product.
    bias = _pick(controls.bias, rows, layers).clamp(min=torch.finfo(torch.float32).min)
    scale, absolute = _pick(controls.scale, rows, layers), _pick(controls.absolute, rows, layers)
    per_class = torch.stack([scale, absolute, bias], 2).transpose(3, 4).flatten(2, 4)
    weight = _pick(controls.weight, rows, layers).transpose(2, 3).flatten(2, 3)
    return list(zip(per_class.unbind(), weight.unbind(), strict=True))


def mass_tables(controls: ControlTables, rows: torch.Tensor, layers: slice) -> list[LayerTables]:
    """Transform above gate weights [seqs * Q * H, C + GATES, C], and thresholds, per layer."""
    transform, weights, threshold = (
        _pick(table, rows, layers).flatten(1, 3)
        for table in (controls.transform, controls.gate_weight, controls.gate_threshold)
    )
    matrix = torch.cat([transform, weights], -2)
    return list(zip(matrix.unbind(), threshold.unbind(), strict=True))


def _pick(table: torch.Tensor, rows: torch.Tensor, layers: slice) -> torch.Tensor:
    """A control table's rows [layers, seqs, Q, H, ...]; all layers cost hardly more than one."""
    picked = table[:, layers].index_select(0, rows.flatten()).transpose(0, 1)
    return picked.reshape(-1, *rows.shape, *picked.shape[2:])


def apply_scores(
    scores: torch.Tensor,
    per_class: torch.Tensor,
    weights: torch.Tensor,
    members: torch.Tensor,
    betas: torch.Tensor,
    product: Product = torch.bmm,
) -> torch.Tensor:
    per_key = torch.bmm(per_class.to(scores.dtype), members)
    scale, absolute, bias = per_key.view(scores.shape[0], 3, *scores.shape[1:]).unbind(1)
    edited = scores + scale * scores + absolute * scores.abs() + bias
    weighted = product(weights.to(scores.dtype), betas.to(scores.dtype))
    return edited + weighted.view(scores.shape)


def apply_masses(
    attention: torch.Tensor,
    matrix: torch.Tensor,
    threshold: torch.Tensor,
    members: torch.Tensor,
    product: Product = torch.bmm,
) -> tuple[torch.Tensor, torch.Tensor]:
    seqs, heads, queries, keys = attention.shape
    mass = product(attention.view(seqs, -1, keys), members.transpose(1, 2))
    if queries > 1:  # to the order of the tables, and back
        mass = mass.view(seqs, heads, queries, CLASSES).transpose(1, 2)
    ratio = _ratios(mass.reshape(-1, CLASSES), matrix, threshold)
    if queries > 1:
        ratio = ratio.view(seqs, queries, heads, CLASSES).transpose(1, 2)
    ratio = ratio.reshape(seqs, -1, CLASSES)
    moved = ((ratio - 1).abs() > MOVED).any(-1).view(seqs, heads, queries)
    return attention * torch.bmm(ratio, members).view(attention.shape), moved


def apply_head_masses(
    attention: torch.Tensor,
    matrix: torch.Tensor,
    threshold: torch.Tensor,
    members: torch.Tensor,
    product: Product = torch.bmm,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`apply_masses`, of sequences whose heads differ: members [seqs, H, C, keys]."""
    seqs, heads, queries, _ = attention.shape
    mass = head_masses(attention, members, product).transpose(1, 2)  # [seqs, queries, H, C]
    ratio = _ratios(mass.reshape(-1, CLASSES), matrix, threshold)
    ratio = ratio.view(seqs, queries, heads, CLASSES).transpose(1, 2)
    moved = ((ratio - 1).abs() > MOVED).any(-1)
    return attention * (ratio @ members), moved


def head_masses(attention: torch.Tensor, members: torch.Tensor, product: Product) -> torch.Tensor:
    """Masses of classes that heads have of their own: [seqs, heads, queries, C]."""
    found = product(attention.flatten(0, 1), members.flatten(0, 1).transpose(1, 2))
    return found.view(*attention.shape[:3], CLASSES)


def _ratios(mass: torch.Tensor, matrix: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """What each class's keys are multiplied with, m'_c / m_c; all are [rows, ...]."""
    product = torch.bmm(matrix.to(mass.dtype), mass[..., None]).squeeze(-1)
    is_open = (product[:, CLASSES:] >= threshold).all(-1, keepdim=True)
    after = torch.where(is_open, product[:, :CLASSES], mass)
    ratio = (after / mass).nan_to_num_(1.0, posinf=torch.inf)  # 0 / 0: a class without keys
    if bool(ratio.amax() > LARGEST_RATIO):
        ratio = _return_masses(ratio, mass, after)
    return ratio


def _return_masses(ratio: torch.Tensor, mass: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Share the mass that a transform gave to empty classes among the other classes of the row.

    A row without another class keeps all its masses. A class without mass gets the ratio 1: it has
    no weight that could change, so it does not make its row count as moved.
    """
    empty = ratio > LARGEST_RATIO
    lost = torch.where(empty, after, 0.0).sum(-1, keepdim=True)
    kept = torch.where(empty, 0.0, after).sum(-1, keepdim=True)
    stuck = (kept <= 0) & (lost > 0)
    returned = 1 + lost / torch.where(kept > 0, kept, torch.inf)
    return torch.where(empty | stuck | (mass <= 0), 1.0, ratio * returned)


def class_members(tags: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Which class each key belongs to, one-hot: [seqs, CLASSES, keys]."""
    one_hot = _one_hot(dtype, tags.device)
    return torch.nn.functional.embedding(tags.long(), one_hot).transpose(1, 2)


def head_members(
    per_head: PerHeadTable,
    tag_rows: torch.Tensor,
    tags: torch.Tensor,
    layer: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Which class each key belongs to in each head, one-hot: [seqs, heads, CLASSES, keys].

    Args:
        tag_rows: [seqs]; ``tags`` their keys' tags, [seqs, keys].
    """
    rows = per_head.rows[tag_rows].long()
    own = per_head.classes[rows, layer, :, : tags.shape[1]]  # [seqs, heads, keys]
    own = torch.nn.functional.pad(own, (0, tags.shape[1] - own.shape[2]))
    is_per_head = per_head.heads[rows, layer].bool()[..., None]
    classes = torch.where(is_per_head, own, tags[:, None])
    members = torch.nn.functional.embedding(classes.long(), _one_hot(dtype, tags.device))
    return members.transpose(2, 3)


@cache
def _one_hot(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[256, CLASSES], for any byte: a hidden key counts to some class, but has no mass."""
    tags = torch.arange(256, device=device).clamp(max=CLASSES - 1)
    return torch.nn.functional.one_hot(tags, CLASSES).to(dtype)
