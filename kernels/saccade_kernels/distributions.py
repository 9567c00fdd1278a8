"""Distributions over the vocabulary, of rows of logits: combined, compared, and held by masks.

Contrast draws tokens from d = own log p - other log q instead of log p; where q is read from early
layers (DoLa), of several the one counts that differs most from p. A mask leaves some tokens of a
row and takes the others away.
"""

from __future__ import annotations

from functools import cache
from math import log

import torch


def contrast(
    log_p: torch.Tensor,
    log_q: torch.Tensor,
    own: torch.Tensor,
    other: torch.Tensor,
    log_cutoff: torch.Tensor,
) -> torch.Tensor:
    """own log p - other log q, and -inf where log p < max log p + log cutoff, or p is 0.

    All of one dtype: distributions [rows, vocabulary], the numbers of the rules [rows, 1].
    """
    excluded = log_p < log_p.amax(-1, keepdim=True) + log_cutoff
    excluded |= log_p == float("-inf")
    return (own * log_p - other * log_q).masked_fill(excluded, float("-inf"))


def divergence(log_p: torch.Tensor, log_q: torch.Tensor, kind: str) -> torch.Tensor:
    """How far two distributions are apart, averaged over the vocabulary: [rows].

    With M = (p + q) / 2: "dola" is (KL(M||p) + KL(M||q)) / 2, what DoLa's code computes; "jsd" is
    the Jensen-Shannon divergence, (KL(p||M) + KL(q||M)) / 2.

    Row by row: what PyTorch does with one row of several depends on how many there are.
    """
    if len(log_p) > 1:
        pairs = zip(torch.split(log_p, 1), torch.split(log_q, 1), strict=True)
        return torch.cat([divergence(p, q, kind) for p, q in pairs])
    log_m = torch.logaddexp(log_p, log_q) - log(2)
    if kind == "jsd":
        terms = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    else:
        terms = log_m.exp() * (2 * log_m - log_p - log_q)
    return terms.mean(-1) / 2


def contrast_rows(
    logits: torch.Tensor,
    own: torch.Tensor,
    others: torch.Tensor,
    other: torch.Tensor,
    numbers: torch.Tensor,
) -> torch.Tensor:
    """:func:`contrast` of rows of logits.

    Args:
        logits: [any, vocabulary], float32 or wider; p is the softmax of row ``own``, int64 [n].
        others: [any, vocabulary], any float dtype; q is that of row ``other``, int64 [n].
        numbers: float64 [n, 3]: own and other weight, log of the cutoff.

    Returns:
        [n, vocabulary] in the dtype of ``logits``. NaN or +inf in a row makes all of it NaN.
    """
    log_p = logits.index_select(0, own).log_softmax(-1)
    log_q = others.index_select(0, other).to(log_p.dtype).log_softmax(-1)
    return contrast(log_p, log_q, *numbers.T.to(log_p.dtype)[:, :, None])


def divergences(
    logits: torch.Tensor,
    own: torch.Tensor,
    others: torch.Tensor,
    owners: torch.Tensor,
    is_jsd: torch.Tensor,
) -> torch.Tensor:
    """:func:`divergence` of rows of logits from those that they belong to.

    Args:
        logits, own: as in :func:`contrast_rows`.
        others: [m, vocabulary], any float dtype.
        owners: int64 [m], which of ``own`` each of them is compared with.
        is_jsd: bool [m]: by "jsd" instead of "dola".

    Returns:
        [m] in the dtype of ``logits``.
    """
    log_p = logits.index_select(0, own).log_softmax(-1).index_select(0, owners)
    log_q = others.to(log_p.dtype).log_softmax(-1)
    by_jsd, by_dola = (divergence(log_p, log_q, kind) for kind in ("jsd", "dola"))
    return torch.where(is_jsd, by_jsd, by_dola)


def mask_rows(
    logits: torch.Tensor, rows: torch.Tensor, allowed: torch.Tensor, which: torch.Tensor
) -> None:
    """Write -inf, in place, where a mask does not allow a token; all else stays as it is.

    Args:
        logits: [any, vocabulary], float32 or wider.
        rows: int64 [n], rows of ``logits``; where one comes twice, any of its masks may act.
        allowed: int32 [any, ceil(vocabulary / 32)]: token v is bit v % 32 of word v // 32.
        which: int64 [n], the row of ``allowed`` that holds each of ``rows``.
    """
    octets = allowed.index_select(0, which).view(torch.uint8)
    banned = _banned(logits.device).index_select(0, octets.flatten().int()).view(torch.bool)
    held = logits.index_select(0, rows)
    banned = banned.view(len(rows), 8 * octets.shape[-1])
    held.masked_fill_(banned[:, : logits.shape[-1]], float("-inf"))
    logits.index_copy_(0, rows, held)


@cache
def _banned(device: torch.device) -> torch.Tensor:
    """Which bits of each octet are 0, the lowest first: int64 [256], eight flags in each."""
    octets, bits = (torch.arange(count, device=device) for count in (256, 8))
    return ((octets[:, None] >> bits) & 1 == 0).view(torch.int64).flatten()
