"""What the Triton kernels share: products, soft-cap, and the mass edit of a tile of rows.

Kernels are compiled per constexpr and per kind of argument; see offline.py for the list of what is
shipped. Under ``TRITON_INTERPRET=1`` they run on the CPU, for tests, where bf16 arithmetic other
than conversion is silently wrong (raw bits are multiplied): ``UPCAST`` widens every bf16 operand
there, and only there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saccade_kernels import controls, edits
from saccade_kernels.batch import PAGE as PAGE_SLOTS
from saccade_kernels.batch import AttentionBatch

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.0e38)
"""The least score an edit can give, base 2: below it is only -inf, which means out of sight."""

PAGE = tl.constexpr(PAGE_SLOTS)
WIDTH = tl.constexpr(controls.CLASSES)
"""Classes in a row of the control tables, however few a batch uses."""
GATES = tl.constexpr(controls.GATES)
NEVER_ATTEND = tl.constexpr(controls.NEVER_ATTEND)
LARGEST_RATIO = tl.constexpr(edits.LARGEST_RATIO)
MOVED = tl.constexpr(edits.MOVED)

SCORE = tl.constexpr(controls.Edit.SCORE.value)
MASS = tl.constexpr(controls.Edit.MASS.value)
HEAD = tl.constexpr(controls.Edit.HEAD.value)


@triton.jit
def dot(a, b, UPCAST: tl.constexpr):
    """Matrix product in float32; float32 operands are not rounded to tf32."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def soft_cap(score, cap):
    """``cap * tanh(score / cap)``; the interpreter has no tanh."""
    return cap * (2 * tl.sigmoid(2 * score / cap) - 1)


@triton.jit
def edit_score(score, scale, absolute, bias):
    """A score edit, natural units in, base 2 out; never -inf, which would hide the key.

    All arguments broadcast against ``score``; weights of keys come on top, see key_weights.py.
    """
    edited = score + scale * score + absolute * tl.abs(score) + bias
    return tl.maximum(edited * LOG2E, LOWEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def class_ratios(mass, site, transform, gate_weight, gate_threshold, C: tl.constexpr):
    """m'_c / m_c of class masses [R, C] under one program, by the rules of controls.py.

    ``site`` is (control row * layers + layer) * heads + head. A closed gate, an identity and a
    class without keys give exactly 1.
    """
    column = tl.arange(0, C)
    matrix = tl.load(transform + site * WIDTH * WIDTH + column[:, None] * WIDTH + column[None, :])
    after = tl.sum(mass[:, None, :] * matrix[None, :, :], 2)
    for gate in tl.static_range(GATES):
        weights = tl.load(gate_weight + (site * GATES + gate) * WIDTH + column)
        threshold = tl.load(gate_threshold + site * GATES + gate)
        is_open = tl.sum(mass * weights[None, :], 1) >= threshold
        after = tl.where(is_open[:, None], after, mass)
    present = mass > 0
    ratio = after / tl.where(present, mass, 1.0)
    ratio = tl.where(present, ratio, tl.where(after > 0, float("inf"), 1.0))
    ratio = tl.where(after == mass, 1.0, ratio)  # a fast division may miss x / x = 1
    empty = ratio > LARGEST_RATIO
    lost = tl.sum(tl.where(empty, after, 0.0), 1)
    kept = tl.sum(tl.where(empty, 0.0, after), 1)
    stuck = (kept <= 0) & (lost > 0)
    returned = 1 + tl.where(kept > 0, lost / tl.where(kept > 0, kept, 1.0), 0.0)
    stays = empty | stuck[:, None] | (mass <= 0)
    return tl.where(stays, 1.0, ratio * returned[:, None])


Tensors = tuple[torch.Tensor | None, ...]

CONTROL_ARGUMENTS = (
    "scale",
    "absolute",
    "bias",
    "weight",
    "transform",
    "gate_weight",
    "gate_threshold",
    "gain",
    "shift",
    "edits",
    "tags",
    "key_weights",
    "moved",
)
"""The table arguments of a kernel that edits, in their order."""


PER_HEAD_ARGUMENTS = ("per_head_rows", "per_head_heads", "per_head_classes")
"""Further arguments of a kernel that edits masses, for batches with classes of single heads."""


def per_head_arguments(batch: AttentionBatch, needed: bool) -> Tensors:
    """Those of :data:`PER_HEAD_ARGUMENTS`; all None for a variant that does not read them."""
    if not needed:
        return (None,) * len(PER_HEAD_ARGUMENTS)
    table = batch.per_head_table()
    return table.rows, table.heads, table.classes


def control_arguments(batch: AttentionBatch, needed: bool) -> Tensors:
    """The tables as kernel arguments; all None for a variant that does not read them."""
    if not needed:
        return (None,) * len(CONTROL_ARGUMENTS)
    table, tags = batch.tables()
    programs = tuple(getattr(table, name) for name in CONTROL_ARGUMENTS[:10])
    return (*programs, tags.tags, tags.weights, tags.moved)


def interpreted() -> bool:
    """True when kernels run in the interpreter."""
    return bool(triton.knobs.runtime.interpret)


def needs_upcast(dtype: torch.dtype) -> bool:
    """The interpreter multiplies the raw bits of bf16."""
    return dtype == torch.bfloat16 and interpreted()
