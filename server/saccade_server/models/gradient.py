"""What each key meant to candidate tokens: back through the layers of a row that a step computed.

For candidates c of one query row, L_c = -log p(c), and attention weights A of the row in one layer
and head, the saliency of key j is

    G_j = |A_j dL_c/dA_j|

The loss depends on A only through the row itself: earlier rows do not see it. So going back through
this one row gives the gradient of a forward pass over the whole sequence. Nothing is computed
again: what the step's layers computed for the row lies on a tape (tape.py), once for all
candidates, and the gradients of several candidates are rows of the same products. Earlier keys are
constants, the row's own key and value are not. Edits of attention and at the sites of a layer act
as they did in the step.

    back = top_gradient(...)                              # [n * K, hidden_size]
    for layer in reversed(layers from the lowest that counts):
        back, saliency = layer_gradient(layer, back, ...)
        parts[layer] = region.parts(saliency, ...)
    judged = share(parts, ...)

Or the saliency itself is what is asked for: :func:`maps`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from saccade_kernels import ops
from saccade_kernels.gradients import MOST_LOSSES
from saccade_kernels.layers import RMSNorm, Rotation
from saccade_kernels.residual import SiteKind, site_of
from saccade_server.models.attention import ForwardStep
from saccade_server.models.base import ServedModel
from saccade_server.models.decoder import Layer
from saccade_server.models.tape import EDITED, Activation

__all__ = [
    "MOST_LOSSES",
    "SMALLEST_NORM",
    "Judged",
    "Recorded",
    "Region",
    "Rows",
    "judge",
    "layer_gradient",
    "maps",
    "share",
    "top_gradient",
]

SMALLEST_NORM = 1e-9
"""A row of saliency with a smaller L2 norm counts as no evidence."""


class Recorded(Protocol):
    """A tape that was written."""

    def read(self, what: Activation, layer: int) -> torch.Tensor:
        """One activation of a layer, [rows of the tape, ...]."""
        ...


@dataclass(frozen=True)
class Rows:
    """Query rows of n sequences, one each, that a step has computed."""

    step: ForwardStep  # the rows as decodes; no table of the step is written
    positions: torch.Tensor  # int64 [axes, n]
    tape: Recorded
    at: torch.Tensor  # int64 [n]: their rows of the tape

    def sees(self, layer: Layer) -> torch.Tensor:
        """The keys in a layer's reach, hidden ones too: bool [n, max_context]."""
        batch, window = self.step.batch, layer.scores[2]
        ends = batch.context_lens[:, None]
        keys = torch.arange(batch.max_context, device=ends.device)
        return (keys < ends) & ((keys >= ends - window) if window > 0 else True)


@dataclass(frozen=True)
class Region:
    """The keys J of n rows, whose share in a row's saliency is wanted, and in which layers."""

    start: torch.Tensor  # int64 [n]: first key of J
    end: torch.Tensor  # int64 [n]: behind its last
    counts: torch.Tensor  # bool [n, layers]: whose saliency counts

    def parts(self, saliency: torch.Tensor, layer: Layer, rows: Rows) -> torch.Tensor:
        """Of what :func:`layer_gradient` gave; see :func:`ops.key_shares`."""
        seen = (rows.step.batch.context_lens, layer.scores[2])
        return ops.key_shares(saliency, *seen, self.start, self.end)


@dataclass(frozen=True)
class Judged:
    """Saliency of K candidates of each of n rows."""

    saliency: torch.Tensor  # [n, K], float32 or wider
    evidence: torch.Tensor  # bool [n, K]: the row's gradient is not zero


def judge(
    model: ServedModel,
    rows: Rows,
    region: Region,
    lowest: int,
    candidates: torch.Tensor,
) -> Judged:
    """Saliency of each candidate, by :func:`share`.

    Args:
        lowest: the lowest layer that counts for some row.
        candidates: int64 [n, K], at most :data:`MOST_LOSSES` token ids a row.
    """
    decoder = model.decoder
    back = top_gradient(model, rows, candidates)
    rotations = decoder.rotations(rows.positions, back.dtype)
    found = []
    for layer in reversed(decoder.layers[lowest:]):
        on = layer.index > lowest
        back, saliency = layer_gradient(layer, back, rows, rotations[layer.rotary], on)
        found.append(region.parts(saliency, layer, rows))
    parts = torch.stack(found[::-1])
    return share(parts, region.start, region.end, region.counts[:, lowest:])


def maps(
    model: ServedModel, rows: Rows, layers: Collection[int], tokens: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor]]:
    """Saliency of some tokens of each row by layer, the highest layer first.

    Each is float32 (float64 for a float64 model) [n, K, heads, max_context], 0 for keys that a row
    does not see.

    Args:
        layers: whose saliency is wanted; nothing is computed below the lowest.
        tokens: int64 [n, K], at most :data:`MOST_LOSSES` token ids a row.
    """
    decoder, lowest = model.decoder, min(layers)
    back = top_gradient(model, rows, tokens)
    rotations = decoder.rotations(rows.positions, back.dtype)
    for layer in reversed(decoder.layers[lowest:]):
        on = layer.index > lowest
        back, saliency = layer_gradient(layer, back, rows, rotations[layer.rotary], on)
        if layer.index in layers:
            seen = rows.sees(layer)[:, None, None]
            yield layer.index, torch.where(seen, saliency, saliency.new_zeros(()))


def top_gradient(model: ServedModel, rows: Rows, candidates: torch.Tensor) -> torch.Tensor:
    """dL_c / d(last layer's output) of each candidate, [n * K, hidden_size]."""
    norm, count = model.decoder.norm, len(model.decoder.layers)
    residual = rows.tape.read(Activation.RESIDUAL, count)
    # Those of the step may be what a rule has made of them.
    logits = model.early_logits(residual.index_select(0, rows.at), norm=True)
    grad = logits.softmax(-1).repeat_interleave(candidates.shape[1], 0)
    chosen = candidates.reshape(-1, 1)
    grad.scatter_add_(1, chosen, grad.new_full((), -1.0).expand(chosen.shape))
    back = ops.norm_gradient(model.through_head(grad), residual, rows.at, norm)
    return _site(SiteKind.RESIDUAL, count, back, rows)


def layer_gradient(
    layer: Layer, back: torch.Tensor, rows: Rows, rotation: Rotation, on: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Back through one layer.

    Args:
        back: [n * K, hidden_size], of what the layer leaves.
        on: go on behind its attention; otherwise the first result is no gradient.

    Returns:
        The gradient of what the layer reads, and its saliency, float32 or wider [n, K, heads,
        max_context], which may be anything for keys that a row does not see.
    """
    own, index, tape, at = layer.weights, layer.index, rows.tape, rows.at
    grad = _site(SiteKind.MLP_OUTPUT, index, back, rows)
    grad = _norm(Activation.MLP_OUTPUT, index, grad, rows, own.mlp_post_norm)
    grad = torch.mm(grad, own.down.weight)
    grad = ops.gate_gradient(grad, tape.read(Activation.GATES, index), at, layer.activation)
    grad = torch.mm(grad, own.gate_up.weight)
    back = ops.norm_gradient(grad, tape.read(Activation.MIDDLE, index), at, own.mlp_norm, back)
    grad = _site(SiteKind.ATTENTION_OUTPUT, index, back, rows)
    grad = _norm(Activation.ATTENTION_OUTPUT, index, grad, rows, own.attention_post_norm)
    grad = torch.mm(grad, own.output.weight)
    query, step = tape.read(Activation.QUERY, index).index_select(0, at), rows.step
    heads = grad.view(len(query), -1, *query.shape[1:])
    caches = (step.key_caches[index], step.value_caches[index], step.batch, index)
    found = ops.saliency(query, heads, *caches, *layer.scores)
    if not on:
        return back, found.saliency
    merged = None if own.head_norm is None else tape.read(Activation.MERGED, index)
    through = (found.grad_query, found.grad_key, found.grad_value)
    grad = torch.mm(ops.rope_gradient(through, merged, at, layer.heads, rotation), own.qkv.weight)
    residual = tape.read(Activation.RESIDUAL, index)
    back = ops.norm_gradient(grad, residual, at, own.attention_norm, back)
    return _site(SiteKind.RESIDUAL, index, back, rows), found.saliency


def share(
    parts: torch.Tensor, start: torch.Tensor, end: torch.Tensor, counts: torch.Tensor
) -> Judged:
    """Mean over the layers that count, and over the keys J, of a row of saliency.

    The row is a layer's mean over heads, divided by its norm over keys.

    Args:
        parts: [layers, n, K, parts, 2], see :func:`saccade_kernels.ops.key_shares`; what does not
            count may be anything.
        start, end: int64 [n], J of each row; 0 where it is empty.
        counts: bool [n, layers], some of each row's.
    """
    squares, inside = parts.sum(3).unbind(-1)  # [layers, n, K]
    norm = squares.sqrt()
    counted = counts.T[:, :, None]
    shares = torch.where(counted, inside / norm.clamp(min=SMALLEST_NORM), 0.0).sum(0)
    keys = (end - start).clamp(min=1) * counts.sum(1).clamp(min=1)
    evidence = (counted & (norm > SMALLEST_NORM)).any(0)
    return Judged(shares / keys[:, None], evidence)


def _site(kind: SiteKind, index: int, grad: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Back through the edits at a site, if the step has some there."""
    residuals, site = rows.step.residuals, site_of(kind, index)
    if residuals is None or site not in residuals.sites:
        return grad
    read = rows.tape.read(EDITED[kind], index)
    programs = rows.step.batch.control_rows
    return ops.residual_gradient(grad, read, rows.at, programs, residuals.tables, site)


def _norm(
    what: Activation, index: int, grad: torch.Tensor, rows: Rows, norm: RMSNorm | None
) -> torch.Tensor:
    """Back through the norm behind attention or the MLP, in a family that has one."""
    if norm is None:
        return grad
    return ops.norm_gradient(grad, rows.tape.read(what, index), rows.at, norm)
