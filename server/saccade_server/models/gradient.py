"""What each key meant to candidate tokens: a row's layers once more, with gradient.

For candidates c of one query row, L_c = -log p(c), and attention weights A of the row in one layer
and head, the saliency of key j is

    G_j = |A_j dL_c/dA_j|

No earlier row sees this row, so the loss depends on its A through the row alone: running the row
again, as a decode against the cache, gives the gradient of a forward pass over the whole sequence
at the cost of one token. With K candidates, and layers 5 to 7 of 8 judged:

    the step      layers 0 to 7 of the row; the residual entering layer 5 is kept, K tokens drawn
    behind it     layers 5 to 7 of K replicas of the row, forward, and backward from the K losses

One backward pass through the sum of the losses gives G of all candidates, because replicas do not
see one another. Attention runs once for all replicas of a row; its gradients come from
:func:`saccade_kernels.ops.saliency`, in which keys and values of earlier rows are constants and the
row's own are not. Edits of attention, and at the sites of a layer, act as in the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from saccade_kernels import ops
from saccade_kernels.batch import AttentionBatch
from saccade_kernels.gradients import MOST_LOSSES
from saccade_kernels.residual import SiteKind, site_of
from saccade_server.models.attention import AttentionCall, ForwardStep
from saccade_server.models.base import ServedModel

__all__ = ["MOST_LOSSES", "SMALLEST_NORM", "Judged", "Rows", "carry_up", "judge", "share"]

SMALLEST_NORM = 1e-9
"""A row of saliency with a smaller L2 norm counts as no evidence."""


@dataclass(frozen=True)
class Rows:
    """Query rows of n sequences, one each, that a step has computed."""

    step: ForwardStep  # the rows as decodes; no table of the step is written
    positions: torch.Tensor  # int64 [axes, n]
    start: torch.Tensor  # int64 [n]: first of the keys J over which saliency is averaged
    end: torch.Tensor  # int64 [n]: behind the last of J


@dataclass(frozen=True)
class Judged:
    """Saliency of K candidates of each of n rows."""

    saliency: torch.Tensor  # [n, K], float32 or wider
    evidence: torch.Tensor  # bool [n, K]: the row's gradient is not zero


def carry_up(model: ServedModel, embeddings: torch.Tensor, rows: Rows, layer: int) -> torch.Tensor:
    """The residual entering ``layer``, of rows that begin as ``embeddings`` [n, hidden_size]."""
    step = _again(rows.step, _Again(rows.step.batch))
    with _ordinary_tensors():
        return model.decoder.residual(embeddings.clone(), rows.positions.clone(), step, 0, layer)


def judge(
    model: ServedModel,
    residual: torch.Tensor,
    rows: Rows,
    layers: tuple[int, ...],
    candidates: torch.Tensor,
) -> Judged:
    """Saliency of each candidate, by :func:`share`, averaged over ``layers``.

    Args:
        residual: [n, hidden_size], entering the lowest of ``layers``, edits of it included.
        candidates: int64 [n, K], at most :data:`MOST_LOSSES` token ids a row.
    """
    count, first = candidates.shape[1], min(layers)
    found = _Again(rows.step.batch, frozenset(layers), count)
    step = _again(rows.step, found, first)
    with _ordinary_tensors(), torch.enable_grad():
        hidden = residual.clone().repeat_interleave(count, 0).requires_grad_()
        positions = rows.positions.repeat_interleave(count, -1)
        top = model.decoder.residual(hidden, positions, step, first, model.layers)
        logprobs = model.early_logits(top, norm=True).log_softmax(-1)
        loss = -logprobs.gather(1, candidates.reshape(-1, 1).clone()).sum()
        torch.autograd.grad(loss, hidden)
    shares = [share(found.saliency[layer], rows.start, rows.end) for layer in layers]
    saliency = torch.stack([value for value, _ in shares]).mean(0)
    evidence = torch.stack([known for _, known in shares]).any(0)
    return Judged(saliency, evidence)


def share(
    saliency: torch.Tensor, start: torch.Tensor, end: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over the keys J of a layer's saliency: mean over heads, divided by its norm over keys.

    Args:
        saliency: [n, K, heads, keys].
        start, end: int64 [n], J of each row; 0 where it is empty.

    Returns:
        [n, K], and bool [n, K]: False where the norm is too small to divide by.
    """
    row = saliency.mean(2)
    norm = torch.linalg.vector_norm(row, dim=-1)
    at = torch.arange(row.shape[-1], device=row.device)
    inside = (at >= start[:, None]) & (at < end[:, None])
    total = (row * inside[:, None]).sum(-1) / norm.clamp(min=SMALLEST_NORM)
    return total / (end - start).clamp(min=1)[:, None], norm > SMALLEST_NORM


@dataclass(frozen=True)
class _Again:
    """Attention of rows that lie ``losses`` times in the step, replicas side by side."""

    batch: AttentionBatch  # the rows once each, as decodes
    layers: frozenset[int] = frozenset()  # whose saliency is kept
    losses: int = 1
    saliency: dict[int, torch.Tensor] = field(default_factory=dict)  # [n, losses, heads, keys]

    def attend(self, call: AttentionCall, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See :class:`~saccade_server.models.attention.AttentionAgain`."""
        found: torch.Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
            call.query, key, value, call, self
        )
        return found


class _Attention(torch.autograd.Function):
    """Decode attention of replicated rows; keys and values other than their own are constants."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        call: AttentionCall,
        again: _Again,
    ) -> torch.Tensor:
        """[n * losses, heads, head_dim] in and out; ``key`` and ``value`` are in the cache."""
        ctx.call, ctx.again = call, again
        ctx.query = query[:: again.losses].detach().contiguous()
        caches = (call.key_cache, call.value_cache, again.batch, call.layer)
        output = ops.decode(ctx.query, *caches, call.scale, call.softcap, call.window)
        return output.repeat_interleave(again.losses, 0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        """Gradients of query, own key and own value; keeps the saliency."""
        call, again = ctx.call, ctx.again
        grad = grad_outputs[0].contiguous().view(-1, again.losses, *grad_outputs[0].shape[1:])
        caches = (call.key_cache, call.value_cache, again.batch, call.layer)
        found = ops.saliency(ctx.query, grad, *caches, call.scale, call.softcap, call.window)
        if call.layer in again.layers:
            again.saliency[call.layer] = found.saliency
        flat = (found.grad_query, found.grad_key, found.grad_value)
        return (*(part.flatten(0, 1) for part in flat), None, None)


def _again(step: ForwardStep, again: _Again, edited: int | None = None) -> ForwardStep:
    """The step with replicas of its rows, without the probes and measures that have seen the rows.

    ``edited``: the residual that the replicas start from; its edits are in it and do not act again.
    """
    batch, residuals = step.batch, step.residuals
    batch = replace(batch, control_rows=batch.control_rows.repeat_interleave(again.losses))
    if residuals is not None and edited is not None:
        done = site_of(SiteKind.RESIDUAL, edited)
        residuals = replace(residuals, sites=residuals.sites - {done})
    return replace(step, batch=batch, probes=(), measures=(), residuals=residuals, again=again)


@contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """Leave inference mode, whose tensors autograd cannot keep."""
    with torch.inference_mode(False), torch.no_grad():
        yield
