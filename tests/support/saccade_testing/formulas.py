"""Methods' formulas of attention, written out in float64 for the oracle.

Nothing here comes from saccade_kernels: what engines compute with tables is compared with these.
"""

from collections.abc import Sequence

import torch


def phi(residual: torch.Tensor, dims: Sequence[int] = (3, 11)) -> torch.Tensor:
    """What tells sinks: each row's largest part in ``dims`` over its RMS; [rows, hidden size]."""
    rms = (residual.square().mean(-1) + 1e-6).sqrt()
    return residual[:, list(dims)].abs().amax(-1) / rms


def var(
    weights: torch.Tensor,
    residual: torch.Tensor,
    image: torch.Tensor,
    examined: int,
    first: int,
    *,
    dims: Sequence[int] = (3, 11),
    tau: float = 1.0,
    move: float = 0.6,
    looks: float = 0.02,
    rho: float = 0.3,
    needs_visual_sink: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """VAR's section 2 in one layer: masses of sinks go to visual keys that are none.

    Args:
        weights: attention [heads, rows, keys], of a row to the keys behind it 0.
        residual: what enters the layer, [keys, hidden size].
        image: which keys are visual, bool [keys].
        examined: only keys before this one are looked at for sinks.
        first: only rows from this one on are edited.

    Returns:
        The edited attention, and which rows of which heads are edited, bool [heads, rows].
    """
    sinks = (phi(residual, dims) >= tau) & (torch.arange(len(residual)) < examined)
    vs, vn, ts = sinks & image, ~sinks & image, sinks & ~image
    m_vs, m_vn, m_ts = (weights[..., keys].sum(-1) for keys in (vs, vn, ts))
    rows = torch.arange(weights.shape[1]) >= first
    chosen = (m_vs + m_vn >= looks) & (m_vn >= rho * (m_vs + m_vn)) & (m_vn > 0) & rows
    if needs_visual_sink and not vs.any():
        chosen = torch.zeros_like(chosen)
    factor = torch.ones_like(weights)
    factor[..., vs | ts] = 1 - move
    factor = torch.where(vn, (1 + move * (m_vs + m_ts) / m_vn)[..., None], factor)
    return torch.where(chosen[..., None], weights * factor, weights), chosen


def act_rows(
    tensor: torch.Tensor,
    length: int,
    beta: float = 0.4,
    theta: float = 0.1,
    relative: bool = False,
    decode: str = "running",
    least: int = 4,
    first_found: bool = False,
    spare_receiver: bool = False,
) -> torch.Tensor:
    """One head's attention [rows, keys] calibrated, number by number; prompt of ``length``."""
    weights = tensor.numpy()
    edited = weights.copy()
    rows = len(weights)

    def sinks(last: int, first: int, fewest: int) -> set[int]:
        """By the means over rows ``first`` to ``last``, of keys that so many rows have seen."""
        keys, hits = last + 1, []
        bound = theta / keys if relative else theta
        for k in range(keys):
            seen = [i for i in range(max(first, k), last + 1)]
            mean = sum(float(weights[i, k]) for i in seen) / len(seen)
            if mean > bound and len(seen) >= fewest:
                hits.append(k)
        return set(hits[1:]) if first_found else set(hits) - {0}

    of_prompt = sinks(length - 1, 0, 1)
    for i in range(rows):
        if i < length or decode == "frozen":
            chosen = of_prompt
        elif decode == "off":
            chosen = set()
        elif decode == "row":
            chosen = sinks(i, i, 1)
        else:
            chosen = sinks(i, 0, least)
        m_s = sum(float(weights[i, k]) for k in chosen if k <= i)
        kept = {0} if spare_receiver else set()
        m_n = sum(float(weights[i, k]) for k in range(i + 1) if k not in chosen | kept)
        if m_s == 0 or m_n == 0:
            continue
        for k in range(i + 1):
            if k in chosen:
                edited[i, k] = beta * weights[i, k]
            elif k not in kept:
                edited[i, k] = weights[i, k] * (1 + (1 - beta) * m_s / m_n)
    return torch.from_numpy(edited)
