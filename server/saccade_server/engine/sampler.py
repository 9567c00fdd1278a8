"""Draw the next token of every sequence of a step, each by its own parameters and its own seed.

The draw at output position t of a request with seed s uses the t-th number of a counter-based
generator keyed by s, so it depends on nothing else in the batch, and a preempted sequence goes on
as it would have. Order of operations, as in vLLM: logit bias, penalties, temperature, min-p, top-k,
top-p, draw. Log-probabilities are those of the model's own distribution, before all of it.
"""

from __future__ import annotations

from collections.abc import Sequence as Batch
from dataclasses import dataclass

import numpy as np
import torch

from saccade_server.engine.request import SamplingParams, TokenLogprobs
from saccade_server.engine.sequence import Sequence

GREEDY_BELOW = 1e-5
"""Temperatures under this mean greedy, as in vLLM."""


@dataclass(frozen=True)
class Sample:
    """The token drawn for one sequence."""

    token: int
    logprobs: TokenLogprobs | None


def sample(logits: torch.Tensor, sequences: Batch[Sequence]) -> list[Sample]:
    """Draw one token a sequence.

    Args:
        logits: [sequences, vocabulary], float32 and finite; not modified.
        sequences: in the order of the rows.
    """
    params = [sequence.request.sampling for sequence in sequences]
    edited = _edit(logits, sequences, params)
    tokens = edited.argmax(-1)
    random = [i for i, p in enumerate(params) if p.temperature >= GREEDY_BELOW]
    filtered = [i for i in random if _filters(params[i])]
    free = [i for i in random if not _filters(params[i])]
    for rows, draw in ((free, _draw), (filtered, _draw_filtered)):
        if rows:
            tokens[rows] = draw(edited[rows], [sequences[i] for i in rows])
    picked: list[int] = tokens.tolist()
    logprobs = _logprobs(logits, params, picked)
    return [Sample(token, found) for token, found in zip(picked, logprobs, strict=True)]


def _edit(
    logits: torch.Tensor, sequences: Batch[Sequence], params: Batch[SamplingParams]
) -> torch.Tensor:
    """Bias and penalties; returns ``logits`` itself when no sequence asks for any."""
    edited = logits
    for row, (sequence, p) in enumerate(zip(sequences, params, strict=True)):
        if not (_penalised(p) or p.logit_bias):
            continue
        if edited is logits:
            edited = logits.clone()
        if p.logit_bias:
            index = torch.tensor(list(p.logit_bias), device=logits.device)
            bias = torch.tensor(list(p.logit_bias.values()), device=logits.device)
            edited[row].index_add_(0, index, bias.to(logits.dtype))
        if _penalised(p):
            _penalise(edited[row], sequence, p)
    return edited


def _penalised(p: SamplingParams) -> bool:
    return p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0


def _penalise(row: torch.Tensor, sequence: Sequence, p: SamplingParams) -> None:
    """Repetition counts the prompt too; presence and frequency count the output only."""
    output = sequence.output_counts
    if p.repetition_penalty != 1:
        seen = torch.tensor([*sequence.prompt_tokens.union(output)], device=row.device)
        values, factor = row[seen], p.repetition_penalty
        row[seen] = torch.where(values > 0, values / factor, values * factor)
    if output and (p.presence_penalty or p.frequency_penalty):
        tokens = torch.tensor([*output], device=row.device)
        counts = torch.tensor([*output.values()], device=row.device)
        row[tokens] -= (p.frequency_penalty * counts + p.presence_penalty).to(row.dtype)


def _filters(p: SamplingParams) -> bool:
    return p.top_k > 0 or p.top_p < 1 or p.min_p > 0


def _draw(logits: torch.Tensor, sequences: Batch[Sequence]) -> torch.Tensor:
    """Inverse-CDF draw in the order of the vocabulary, which needs no sorting. int64 [rows]."""
    mass = _scale(logits, sequences).softmax(-1, dtype=torch.float64).cumsum(-1)
    target = _column([_uniform(s) for s in sequences], mass) * mass[:, -1:]
    last = mass.shape[-1] - 1
    return torch.searchsorted(mass, target, right=True).squeeze(-1).clamp(max=last)


def _draw_filtered(logits: torch.Tensor, sequences: Batch[Sequence]) -> torch.Tensor:
    """Inverse-CDF draw over what the filters leave, in descending order. int64 [rows]."""
    params = [sequence.request.sampling for sequence in sequences]
    ordered, index = _scale(logits, sequences).sort(dim=-1, descending=True, stable=True)
    size = ordered.shape[-1]
    rank = torch.arange(size, device=ordered.device)
    probs = ordered.softmax(-1)
    keep = probs >= _column([p.min_p for p in params], probs) * probs[:, :1]
    keep &= rank < _column([float(p.top_k or size) for p in params], probs)
    keep[:, 0] = True
    probs = ordered.masked_fill(~keep, float("-inf")).softmax(-1)
    keep &= probs.cumsum(-1) - probs < _column([p.top_p for p in params], probs)
    keep[:, 0] = True
    mass = (probs * keep).cumsum(-1)
    target = _column([_uniform(s) for s in sequences], mass) * mass[:, -1:]
    place = (mass <= target).sum(-1, keepdim=True)
    # Rounding may put the target on the last kept value; the draw stays inside what is kept.
    last = keep.sum(-1, keepdim=True) - 1
    return index.gather(-1, torch.minimum(place, last)).squeeze(-1)


def _scale(logits: torch.Tensor, sequences: Batch[Sequence]) -> torch.Tensor:
    return logits.float() / _column([s.request.sampling.temperature for s in sequences], logits)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[:, None]


def _uniform(sequence: Sequence) -> float:
    """The number in [0, 1) that decides this output position of this request."""
    seed = sequence.request.sampling.seed & (2**64 - 1)
    generator = np.random.Philox(key=seed, counter=sequence.generated)
    return float(np.random.Generator(generator).random())


def _logprobs(
    logits: torch.Tensor, params: Batch[SamplingParams], tokens: list[int]
) -> list[TokenLogprobs | None]:
    found: list[TokenLogprobs | None] = [None] * len(tokens)
    for row, (p, token) in enumerate(zip(params, tokens, strict=True)):
        if p.logprobs is None:
            continue
        values = logits[row].float().log_softmax(-1)
        best = values.topk(min(p.logprobs, values.numel()))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        found[row] = TokenLogprobs(token, float(values[token]), top)
    return found
