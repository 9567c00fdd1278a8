"""What residuals on their way through the layers already say: tokens, entropies, projections.

The logit lens applies the final norm and the output projection to the residual entering a layer, as
if the layers from there on added nothing. Behind the last layer it is the model's own distribution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from saccade_server.models.base import ServedModel

AT_ONCE = 128
"""Rows whose distributions are in memory at the same time."""


def early_tokens(
    model: ServedModel, residuals: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens of residuals, likeliest first, and their log-probabilities.

    Args:
        residuals: entering a layer or behind the last, [n, hidden_size], edits included.
        top: at most the size of the vocabulary.

    Returns:
        int32 [n, top], and float32 (float64 for a float64 model) [n, top], in nats.
    """
    found = [logprobs.topk(top) for logprobs in _logprobs(model, residuals)]
    logs, tokens = zip(*found, strict=True)
    return torch.cat(tokens).int(), torch.cat(logs)


def scores(
    model: ServedModel, residuals: torch.Tensor, tokens: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """How likely ``tokens`` are under the distributions of residuals, and the likeliest ones.

    NaN stays where a distribution has none.

    Args:
        residuals: [n, hidden_size], as of :func:`early_tokens`.
        tokens: int64 [n], one for each.
        top: at most the size of the vocabulary.

    Returns:
        Log-probabilities [n], in nats; ranks, int32 [n]: 1 and how many tokens are likelier;
        the likeliest tokens and their log-probabilities, as of :func:`early_tokens`.
    """
    found: list[tuple[torch.Tensor, ...]] = []
    for logprobs, own in zip(
        _logprobs(model, residuals), torch.split(tokens, AT_ONCE), strict=True
    ):
        values = logprobs.gather(-1, own[:, None])
        ranks = (logprobs > values).sum(-1, dtype=torch.int32) + 1
        best = logprobs.topk(top)
        found.append((values.squeeze(-1), ranks, best.indices.int(), best.values))
    chosen, ranks, likeliest, their = (torch.cat(parts) for parts in zip(*found, strict=True))
    return chosen, ranks, likeliest, their


def entropies(model: ServedModel, residuals: torch.Tensor) -> torch.Tensor:
    """Entropy of the distributions of residuals [n, hidden_size], in nats: [n]."""
    return torch.cat([entropy(logprobs) for logprobs in _logprobs(model, residuals)])


def entropy(logprobs: torch.Tensor) -> torch.Tensor:
    """Of distributions given as log-probabilities [n, vocabulary], in nats: [n].

    A token of probability 0 adds nothing.
    """
    found: torch.Tensor = torch.special.entr(logprobs.exp()).sum(-1)
    return found


def shares(
    model: ServedModel, residuals: torch.Tensor, groups: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The probability of each group of tokens, int64 ids each, of residuals [n, hidden_size].

    Returns:
        float32 (float64 for a float64 model) [n, groups]; 0 for a group of none.
    """
    return torch.cat(
        [
            torch.stack([logs.index_select(-1, ids).exp().sum(-1) for ids in groups], -1)
            for logs in _logprobs(model, residuals)
        ]
    )


def projections(hidden: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """p = h . r of rows h [n, hidden_size] and directions r [k, hidden_size]: [n, k].

    Products are summed in float32, for float64 rows in float64.
    """
    work = torch.promote_types(hidden.dtype, torch.float32)
    return hidden.to(work) @ directions.to(work).T


def _logprobs(model: ServedModel, residuals: torch.Tensor) -> Iterator[torch.Tensor]:
    """Log-probabilities of some rows after the other, [rows, vocabulary]."""
    for start in range(0, len(residuals), AT_ONCE):
        rows = residuals[start : start + AT_ONCE]
        yield model.early_logits(rows, norm=True).log_softmax(-1)
