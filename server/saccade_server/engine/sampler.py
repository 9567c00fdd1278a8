"""Draw the next token of every sequence of a step, each by its own parameters and its own seed.

The draw at output position t of a request with seed s uses the t-th number of a counter-based
generator keyed by s, so it depends on nothing else in the batch, and a preempted sequence goes on
as it would have. Order of operations: penalties, logit bias, banned tokens, temperature, top-k,
top-p, min-p, draw. Log-probabilities are those of the model's own distribution, before all of it.
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


def sample(logits: torch.Tensor, sequences: Batch[Sequence], eos: tuple[int, ...]) -> list[Sample]:
    """Draw one token a sequence.

    Args:
        logits: [sequences, vocabulary], float32; not modified.
        sequences: in the order of the rows.
        eos: end tokens of the model, banned for sequences that ignore them.

    Raises:
        FloatingPointError: no row of the logits is usable; rows are checked by the caller.
    """
    params = [sequence.request.sampling for sequence in sequences]
    edited = _edit(logits, sequences, params, eos)
    tokens = edited.argmax(-1)
    drawn = [i for i, p in enumerate(params) if p.temperature >= GREEDY_BELOW]
    if drawn:
        rows = edited if len(drawn) == len(params) else edited[drawn]
        chosen = [sequences[i] for i in drawn]
        tokens[drawn] = _draw(rows, [params[i] for i in drawn], chosen)
    picked: list[int] = tokens.tolist()
    logprobs = _logprobs(logits, params, picked)
    return [Sample(token, found) for token, found in zip(picked, logprobs, strict=True)]


def _edit(
    logits: torch.Tensor,
    sequences: Batch[Sequence],
    params: Batch[SamplingParams],
    eos: tuple[int, ...],
) -> torch.Tensor:
    """Penalties, bias and bans; returns ``logits`` itself when no sequence asks for any."""
    edited = logits
    for row, (sequence, p) in enumerate(zip(sequences, params, strict=True)):
        if not (_penalised(p) or p.logit_bias or (p.ignore_eos and eos)):
            continue
        if edited is logits:
            edited = logits.clone()
        if _penalised(p):
            _penalise(edited[row], sequence, p)
        if p.logit_bias:
            index = torch.tensor(list(p.logit_bias), device=logits.device)
            bias = torch.tensor(list(p.logit_bias.values()), device=logits.device)
            edited[row].index_add_(0, index, bias.to(logits.dtype))
        if p.ignore_eos:
            edited[row, list(eos)] = float("-inf")
    return edited


def _penalised(p: SamplingParams) -> bool:
    return p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0


def _penalise(row: torch.Tensor, sequence: Sequence, p: SamplingParams) -> None:
    """Repetition counts the prompt too; presence and frequency count the output only."""
    size = row.numel()
    output = torch.tensor(sequence.tokens[sequence.prompt_length :], dtype=torch.int64)
    counts = torch.bincount(output, minlength=size).to(row)
    if p.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(sequence.tokens)), device=row.device)
        values = row[seen]
        factor = p.repetition_penalty
        row[seen] = torch.where(values > 0, values / factor, values * factor)
    row -= p.frequency_penalty * counts + p.presence_penalty * (counts > 0)


def _draw(
    logits: torch.Tensor, params: Batch[SamplingParams], sequences: Batch[Sequence]
) -> torch.Tensor:
    """Inverse-CDF draw over the filtered distribution in descending order. Returns int64 [rows]."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=logits.device, dtype=torch.float32)[:, None]

    size = logits.shape[-1]
    scaled = logits.float() / column([p.temperature for p in params])
    ordered, index = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(size, device=logits.device)
    limit = column([float(p.top_k) if p.top_k > 0 else float(size) for p in params])
    ordered = ordered.masked_fill(rank >= limit, float("-inf"))
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    keep = before < column([p.top_p for p in params])
    keep &= probs >= column([p.min_p for p in params]) * probs[:, :1]
    keep[:, 0] = True
    mass = (probs * keep).cumsum(-1)
    target = column([_uniform(s) for s in sequences]) * mass[:, -1:]
    place = (mass <= target).sum(-1, keepdim=True)
    # Rounding may put the target on the last kept value; the draw stays inside what is kept.
    last = keep.long().cumsum(-1).argmax(-1, keepdim=True)
    return index.gather(-1, torch.minimum(place, last)).squeeze(-1)


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
