"""What the engine is asked about a continuation: its tokens, as rows of the answer they would be.

Where a plan allows it they are given, and run in chunks behind the prompt; a plan that acts where
tokens are drawn gets them forced, one by one. Either way each is scored by the distribution that a
request with this plan would have drawn it from, before temperature, bias and penalties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from saccade_interventions.errors import Code, InterventionError
from saccade_server.engine.limits import acts_on_draws
from saccade_server.engine.request import (
    EngineInfo,
    GenerateRequest,
    SamplingParams,
    TokenLogprobs,
)
from saccade_server.requests.errors import RequestError
from saccade_server.requests.limits import check_group, room
from saccade_server.requests.prepared import Prepared
from saccade_server.requests.scores import TokenScore, scoring


@dataclass(frozen=True)
class Score:
    """Of a continuation: the log-probability of each token, and whether all are the likeliest."""

    logprobs: tuple[float, ...]
    is_greedy: bool

    @classmethod
    def of(cls, given: Sequence[TokenScore], forced: Sequence[TokenLogprobs]) -> Score:
        """What the engine said, in the one way or the other; likeliest as others may be, too."""
        greedy = [entry.rank == 1 for entry in given]
        greedy += [entry.logprob >= max(value for _, value in entry.top) for entry in forced]
        logprobs = [entry.logprob for entry in given] + [entry.logprob for entry in forced]
        return cls(tuple(logprobs), all(greedy))


def continuation_request(prepared: Prepared, tokens: tuple[int, ...]) -> GenerateRequest:
    """What scores ``tokens`` behind a prompt; it lacks a name."""
    if acts_on_draws(prepared.plan):
        sampling = SamplingParams(
            max_tokens=len(tokens), temperature=0.0, ignore_eos=True, logprobs=1, forced=tokens
        )
        return prepared.request("", sampling)
    given = tokens[:-1]  # nothing is asked of the last one's row
    sampling = SamplingParams(max_tokens=len(given), temperature=0.0, ignore_eos=True)
    request = replace(prepared.request("", sampling), given=given)
    return scoring(request, prepared.length - 1, tokens, 0)


def check_continuation(
    prepared: Prepared, tokens: tuple[int, ...], info: EngineInfo, param: str
) -> None:
    """Refuse a continuation that this server cannot score; ``param`` is where the request has it.

    Raises:
        RequestError: it is empty, or there is no room for it.
        InterventionError: an intervention has no say in how likely it is.
    """
    if not tokens:
        message = "Nothing of it is left behind the prompt: it is part of the prompt's last token."
        raise RequestError(message, param=param)
    most = room(info) - prepared.length
    if len(tokens) > most:
        message = (
            f"The prompt has {prepared.length} tokens and the continuation {len(tokens)}; together "
            f"they may be {room(info)}."
        )
        raise RequestError(message, code="context_length_exceeded", param=param)
    _check_says(prepared)
    check_group(continuation_request(prepared, tokens), info)


def _check_says(prepared: Prepared) -> None:
    for rule in () if prepared.plan is None else prepared.plan.rules:
        if rule.chooses:
            method = prepared.interventions[rule.source].method_id()
            message = (
                f"{method} chooses among tokens once they are drawn; how likely a continuation is "
                "does not change with it, so its score would be the plain model's."
            )
            raise InterventionError(Code.INVALID_PARAMS, message, f"interventions[{rule.source}]")
