"""Candidates for the next tokens of sequences that reject some, and which of them is accepted.

A pool holds the likeliest tokens of what the sampler would draw from: after logit bias, penalties,
temperature, min-p, top-k and top-p. The host reads it with the tokens of its step, together with
what each key meant to each candidate (saliency.py), and decides (acceptance.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Batch

import torch
from msgspec import structs

from saccade_interventions.plan import Plan
from saccade_interventions.rules import SaliencyRule
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.request import SamplingParams, TokenLogprobs
from saccade_server.engine.rules.acceptance import Acceptance, Candidate, descending, drawn
from saccade_server.engine.rules.base import Asked, News
from saccade_server.engine.sampler import GREEDY_BELOW, Columns, Sample, keep_likely, uniforms
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Download, Layout


def pool_of(
    edited: torch.Tensor, logits: torch.Tensor, columns: Columns, count: int
) -> list[torch.Tensor]:
    """Tokens, their probabilities among what filters leave, own log-probabilities: [rows, K].

    Args:
        edited: what is drawn from, [rows, vocabulary].
        logits: what log-probabilities are of, likewise.
        count: K, if there are so many tokens.
    """
    probs, index = keep_likely(edited, columns)
    tokens = index[:, :count]
    logprobs = logits.float().log_softmax(-1).gather(-1, tokens)
    return [tokens, probs[:, :count], logprobs]


def pool_params(p: SamplingParams) -> SamplingParams:
    """What filters a request's pool: greedy requests filter, too, as at temperature 1."""
    return structs.replace(p, temperature=1.0) if p.temperature < GREEDY_BELOW else p


class Pools(News):
    """The pools of a step's sequences, on their way to the host."""

    def __init__(
        self,
        parts: list[tuple[Batch[Asked[SaliencyRule]], Download]],
        states: Mapping[Sequence, Acceptance],
        fields: Layout | None = None,
    ) -> None:
        """``fields``: how tensors lie in one block of bytes; None: they come one by one."""
        self._parts = parts
        self._fields = fields
        self._states = states
        self._found: dict[Chunk, tuple[SaliencyRule, list[Candidate], int]] = {}

    def note(self) -> None:
        """Read the pools, likeliest first; waits for the device."""
        for group, download in self._parts:
            tensors = download.wait()
            if self._fields is not None:
                tensors = self._fields.tensors(tensors[0])
            columns = [tensor[: len(group)].tolist() for tensor in tensors]
            for asked, *lists in zip(group, *columns, strict=True):
                pool = [Candidate(*values) for values in zip(*lists, strict=True)]
                left = [item for item in pool[: asked.rule.candidates] if item.weight > 0]
                self._found[asked.chunk] = asked.rule, left, keys_of(asked)

    def choose(self, chunk: Chunk, sample: Sample) -> Sample:
        """The token that the sequence accepts, in place of the sampler's own."""
        state = self._states.get(chunk.sequence)  # an aborted one has none
        if state is None or chunk not in self._found:
            return sample
        sequence, (rule, pool, keys) = chunk.sequence, self._found[chunk]
        params = sequence.request.sampling
        if params.temperature < GREEDY_BELOW:
            order = descending(pool)
        else:
            order = drawn(pool, uniforms(params.seed, chunk.end - sequence.prompt_length))
        choice = state.choose(pool, order, keys)
        counted = (("draws", choice.draws), ("rejections", choice.rejections))
        for name, times in (*counted, ("fallbacks", int(choice.fallback))):
            if times:
                sequence.count(rule.source, name, times)
        token, logprobs = choice.candidate.token, sample.logprobs
        if logprobs is not None:
            logprobs = TokenLogprobs(token, choice.candidate.logprob, logprobs.top)
        return Sample(token, logprobs)


def span_of(asked: Asked[SaliencyRule]) -> tuple[int, int]:
    """J, the keys that matter, of the chunk's last row."""
    rule, chunk = asked.rule, asked.chunk
    first = first_key(chunk.sequence.plan, rule)
    return first, chunk.end if rule.with_self else chunk.end - 1


def first_key(plan: Plan | None, rule: SaliencyRule) -> int:
    """Where J begins, in a sequence with this plan."""
    assert plan is not None
    if rule.region == "after_image" and plan.question_start:
        return plan.question_start
    return plan.prompt_length


def keys_of(asked: Asked[SaliencyRule]) -> int:
    """Size of J."""
    start, end = span_of(asked)
    return max(end - start, 0)
