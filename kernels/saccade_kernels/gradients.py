"""Plain PyTorch of the gradients of one edited attention row: the specification of saliency.py.

One query row of one head, in the letters of controls.py. Let ``g_c`` be the mean of dL/dA'_j over
class c, weighted with A_j, and ``J_cd = dm'_c / dm_d``. With ``h_d = sum_c g_c J_cd``:

    dL/dA'_j = gain * (dL/do' . v_j)
    dL/dz'_j = A_j (r_c (dL/dA'_j - g_c) + h_c - sum_d m_d h_d),   r_c = m'_c / m_c
    dL/dz_j  = dL/dz'_j (1 + scale_c + absolute_c sign(z_j))

and the soft-cap's ``1 - (z_j / softcap)^2`` leads on to the product of query and key. Whether the
gates hold and which classes are empty count as constants. Arithmetic runs in float32, or in
float64 when the query is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saccade_kernels.batch import PAGE, AttentionBatch
from saccade_kernels.controls import CLASSES, KEY_WEIGHTS, NEVER_ATTEND, ControlShape, Edit
from saccade_kernels.edits import LARGEST_RATIO, head_members
from saccade_kernels.tables import ControlTables

MOST_LOSSES = 16
"""Losses one call may ask for: the rows of a tile of tensor cores."""


@dataclass(frozen=True)
class RowGradients:
    """Saliency and gradients of the decodes' rows; M losses each, dtypes as in the arguments."""

    saliency: torch.Tensor  # float32 [num_decodes, M, heads, max_context]; of keys that rows see
    grad_query: torch.Tensor  # [num_decodes, M, heads, head_dim]
    grad_key: torch.Tensor  # [num_decodes, M, kv_heads, head_dim], of the row's own key only
    grad_value: torch.Tensor  # [num_decodes, M, kv_heads, head_dim], of its own value only


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
    """``|A'_j dL/dA'_j|`` of every key, and the gradients that lead on to lower layers.

    A' are the weights after the mass edit and before the head edit, so the head gain is part of
    dL/dA'. This step's keys are already stored. Gradients of padded sequences are zeros. Saliency
    is 0 for keys that are hidden; for those outside of a row's context or window it is anything.

    Args:
        query: [num_decodes, heads, head_dim].
        grad_output: [num_decodes, M, heads, head_dim], M at most :data:`MOST_LOSSES`: dL_m/do' of
            M losses, o' being what the attention op returns; any floating dtype.
        scale, softcap, window: as in :func:`saccade_kernels.reference.decode`.

    Returns:
        Gradients in ``grad_output``'s dtype; saliency in float32 (float64 for a float64 query).
    """
    work = torch.promote_types(query.dtype, torch.float32)
    made = empty_gradients(grad_output, key_cache.shape[2], batch.max_context, work)
    for seq, context in enumerate(batch.context_lens[: batch.num_decodes].tolist()):
        if not context:
            continue
        row = _Row.read(query, key_cache, value_cache, batch, layer, window, seq)
        weights, slope = row.attend(scale, softcap)
        factor, grad_weights, grad_scores = row.differentiate(weights, grad_output[seq].to(work))
        edited = factor * weights  # A', [heads, keys]
        made.saliency[seq][..., row.seen] = (edited * grad_weights).abs()
        grad_scores = grad_scores * (slope * scale)
        grad_query = torch.einsum("mhn,nhd->mhd", grad_scores, row.key)
        made.grad_query[seq] = grad_query.to(grad_output.dtype)
        own = row.seen == context - 1
        kv_heads = (*made.grad_key.shape[1:3], query.shape[1] // key_cache.shape[2], query.shape[2])
        grad_key = (grad_scores * own).sum(-1)[..., None] * row.query
        made.grad_key[seq] = grad_key.view(kv_heads).sum(2).to(grad_output.dtype)
        grad_value = ((edited * own).sum(-1) * row.gain)[:, None] * grad_output[seq].to(work)
        made.grad_value[seq] = grad_value.view(kv_heads).sum(2).to(grad_output.dtype)
    return made


def empty_gradients(
    grad_output: torch.Tensor, kv_heads: int, max_context: int, work: torch.dtype
) -> RowGradients:
    """All zeros; rows of saliency lie whole pages apart."""
    seqs, losses, heads, dim = grad_output.shape
    pages = -(-max_context // PAGE)
    saliency = grad_output.new_zeros(seqs, losses, heads, pages * PAGE, dtype=work)
    return RowGradients(
        saliency=saliency[..., :max_context],
        grad_query=torch.zeros_like(grad_output, memory_format=torch.contiguous_format),
        grad_key=grad_output.new_zeros(seqs, losses, kv_heads, dim),
        grad_value=grad_output.new_zeros(seqs, losses, kv_heads, dim),
    )


@dataclass(frozen=True)
class _Row:
    """One sequence's query row, the keys it sees, and its program; heads H, keys N, classes C."""

    query: torch.Tensor  # [H, D]
    key: torch.Tensor  # [N, H, D]; value likewise
    value: torch.Tensor
    seen: torch.Tensor  # int64 [N]: positions in the sequence
    members: torch.Tensor  # [N, C], one-hot by tag, for the scores
    classes: torch.Tensor  # [H, N, C], one-hot by class, for the masses
    betas: torch.Tensor  # [KEY_WEIGHTS, N]
    program: dict[str, torch.Tensor]  # fields of Program for this layer, [H, ...]

    @property
    def gain(self) -> torch.Tensor:
        return self.program["gain"]

    @classmethod
    def read(
        cls,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        batch: AttentionBatch,
        layer: int,
        window: int,
        seq: int,
    ) -> _Row:
        work, heads = torch.promote_types(query.dtype, torch.float32), query.shape[1]
        context, edit = int(batch.context_lens[seq]), batch.edit(layer)
        seen = torch.arange(max(context - window, 0) if window > 0 else 0, context)
        seen = seen.to(query.device)
        classes = torch.zeros_like(seen)
        betas = query.new_zeros(KEY_WEIGHTS, len(seen), dtype=work)
        program = _identity(heads, query.device, work)
        if edit:
            controls, tables = batch.tables()
            tag_row = int(batch.tag_rows[seq])
            if edit & Edit.HIDE:
                seen = seen[tables.tags[tag_row, layer, seen] != NEVER_ATTEND]
            classes = tables.tags[tag_row, layer, seen].long().clamp(max=CLASSES - 1)
            betas = tables.weights[tag_row][:, seen].to(work)
            program = _program(controls, int(batch.control_rows[seq]), layer, work)
        slots = batch.page_table[seq, seen // PAGE].long() * PAGE + seen % PAGE
        group = heads // key_cache.shape[2]
        key, value = (
            cache.flatten(0, 1)[slots].to(work).repeat_interleave(group, 1)
            for cache in (key_cache, value_cache)
        )
        members = torch.nn.functional.one_hot(classes, CLASSES).to(work)
        by_head = members.expand(heads, -1, -1)
        if edit and batch.per_head_classes:
            own = batch.tag_rows[seq : seq + 1], tables.tags[tag_row, layer, None, :context]
            found = head_members(batch.per_head_table(), *own, layer, work)
            by_head = found[0].transpose(1, 2)[:, seen]
        return cls(query[seq].to(work), key, value, seen, members, by_head, betas, program)

    def attend(self, scale: float, softcap: float) -> tuple[torch.Tensor, torch.Tensor]:
        """A, and dz'/d(scale * q . k); both [H, N]."""
        z = torch.einsum("hd,nhd->hn", self.query, self.key) * scale
        slope = torch.ones_like(z)
        if softcap > 0:
            z = softcap * torch.tanh(z / softcap)
            slope = 1 - (z / softcap) ** 2
        per_class = ("scale", "absolute", "bias")
        by, absolute, bias = (self.program[name] @ self.members.T for name in per_class)
        slope = slope * (1 + by + absolute * z.sign())
        weighted = self.program["weight"] @ self.betas
        return torch.softmax(z + by * z + absolute * z.abs() + bias + weighted, -1), slope

    def differentiate(
        self, weights: torch.Tensor, grad_output: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ratio r of each key [H, N]; dL/dA' and dL/dz' [M, H, N]."""
        grad_weights = torch.einsum("mhd,nhd->mhn", grad_output, self.value)
        grad_weights = grad_weights * self.gain[:, None]
        mass = torch.einsum("hn,hnc->hc", weights, self.classes)  # m_c
        per_class = torch.einsum("mhn,hnc->mhc", weights * grad_weights, self.classes)
        per_class = per_class / torch.where(mass > 0, mass, 1.0)  # g_c, [M, H, C]
        ratio, jacobian = mass_jacobian(mass, self.program)
        onward = torch.einsum("mhc,hcd->mhd", per_class, jacobian)  # h_d
        offset = onward - ratio * per_class - (mass * onward).sum(-1, keepdim=True)
        factor = torch.einsum("hc,hnc->hn", ratio, self.classes)
        offset = torch.einsum("mhc,hnc->mhn", offset, self.classes)
        return factor, grad_weights, weights * (factor * grad_weights + offset)


def mass_jacobian(
    mass: torch.Tensor, program: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """m'_c / m_c [H, C], and dm'_c / dm_d [H, C, C], of class masses [H, C].

    A class that takes part in the transform gets ``m'_c = (T m)_c (1 + lost / kept)``, where lost
    is what T gives to empty classes and kept what it gives to the others; every other class, and
    every class behind a closed gate, keeps its mass.
    """
    transform = program["transform"]
    after = (transform @ mass[..., None]).squeeze(-1)
    gates = (program["gate_weight"] @ mass[..., None]).squeeze(-1)
    is_open = (gates >= program["gate_threshold"]).all(-1, keepdim=True)
    empty = after > LARGEST_RATIO * mass
    lost = torch.where(empty, after, 0.0).sum(-1, keepdim=True)
    kept = torch.where(empty, 0.0, after).sum(-1, keepdim=True)
    divisor = torch.where(kept > 0, kept, torch.inf)
    lost_by = torch.where(empty[..., None], transform, 0.0).sum(-2)  # d lost / dm_d, [H, C]
    kept_by = torch.where(empty[..., None], 0.0, transform).sum(-2)
    returned = 1 + lost / divisor
    returned_by = lost_by / divisor - lost / divisor * (kept_by / divisor)
    moved = is_open & ~empty & ~((kept <= 0) & (lost > 0))
    ratio = after * returned / torch.where(mass > 0, mass, 1.0)
    ratio = torch.where(moved & (mass > 0), ratio, 1.0)
    jacobian = transform * returned[..., None] + after[..., None] * returned_by[:, None, :]
    eye = torch.eye(mass.shape[-1], dtype=mass.dtype, device=mass.device)
    return ratio, torch.where(moved[..., None], jacobian, eye)


FIELDS = (
    "scale",
    "absolute",
    "bias",
    "weight",
    "transform",
    "gate_weight",
    "gate_threshold",
    "gain",
)


def _program(
    controls: ControlTables, row: int, layer: int, work: torch.dtype
) -> dict[str, torch.Tensor]:
    program = {name: getattr(controls, name)[row, layer].to(work) for name in FIELDS}
    # Minus infinity, written to knock a class out, would be NaN times the zeros of a product.
    program["bias"] = program["bias"].clamp(min=torch.finfo(torch.float32).min)
    return program


def _identity(heads: int, device: torch.device, work: torch.dtype) -> dict[str, torch.Tensor]:
    row = ControlTables.allocate(1, ControlShape(1, heads, 1), device)
    return _program(row, 0, 0, work)
