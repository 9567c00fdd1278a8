"""Log-probabilities of drawn tokens and of the best alternatives, for the rows that ask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Batch
from dataclasses import dataclass

import numpy as np
import torch

from saccade_server.engine.request import SamplingParams, TokenLogprobs
from saccade_server.engine.transfer import Uploader


@dataclass(frozen=True)
class Logprobs:
    """What was queued: three tensors for each group of rows with equally many alternatives.

    Rows share a group only if they ask for the same number, so that equal log-probabilities come
    in an order that no other request decides.
    """

    groups: tuple[tuple[int, ...], ...]
    tensors: list[torch.Tensor]  # of each group: chosen [n], best ids [n, k], best values [n, k]

    def read(self, tokens: Batch[int], tensors: Batch[torch.Tensor]) -> list[TokenLogprobs | None]:
        """By row, from what the host received; None for rows that did not ask."""
        found: list[TokenLogprobs | None] = [None] * len(tokens)
        for number, rows in enumerate(self.groups):
            lists = (part.tolist() for part in tensors[3 * number : 3 * number + 3])
            for row, own, ids, values in zip(rows, *lists, strict=True):
                top = tuple(zip(ids, values, strict=True))
                found[row] = TokenLogprobs(tokens[row], own, top)
        return found


def queue_logprobs(
    logits: torch.Tensor, params: Batch[SamplingParams], tokens: torch.Tensor, upload: Uploader
) -> Logprobs:
    """Compute log-probabilities of ``tokens``, int64 [rows], under ``logits`` [rows, vocabulary].

    NaN stays where logits are not finite.
    """
    asked: dict[int, list[int]] = defaultdict(list)
    for row, p in enumerate(params):
        if p.logprobs is not None:
            asked[min(p.logprobs, logits.shape[-1])].append(row)
    tensors: list[torch.Tensor] = []
    for count, rows in asked.items():
        (index,) = upload(np.array(rows, dtype=np.int64))
        values = logits.index_select(0, index).float().log_softmax(-1)
        chosen = values.gather(-1, tokens.index_select(0, index)[:, None]).squeeze(-1)
        best = values.topk(count)
        tensors += [chosen, best.indices, best.values]
    return Logprobs(tuple(tuple(rows) for rows in asked.values()), tensors)
