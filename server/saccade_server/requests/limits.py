"""What this server has room for: how long an answer may be, and which requests it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from saccade_interventions.errors import Code, InterventionError
from saccade_kernels.batch import PAGE
from saccade_server.engine.limits import (
    one_step_tokens,
    why_group_refused,
    why_min_tokens_refused,
)
from saccade_server.engine.request import BranchInput, EngineInfo, GenerateRequest, SamplingParams
from saccade_server.requests.errors import RequestError
from saccade_server.requests.prepared import Prepared


def room(info: EngineInfo) -> int:
    """Tokens that a prompt and its answer may have together."""
    return min(info.max_model_len, info.cache_tokens)


def room_for_all(length: int, branches: Sequence[BranchInput], info: EngineInfo) -> int:
    """Tokens that may be generated after a prompt of ``length`` tokens, given its branches.

    Without branches the limit is the longest sequence. With them, all have to fit into the cache at
    once, whole pages each.
    """
    most = room(info) - length
    if not branches:
        return most
    growing = [length, *(len(branch.tokens) for branch in branches if not branch.measures)]
    fixed = [len(branch.tokens) for branch in branches if branch.measures]
    pages = _pages(info.cache_tokens) - sum(map(_pages, fixed))
    most = min(most, (pages * PAGE - sum(growing)) // len(growing))
    while most > 0 and sum(_pages(length + most) for length in growing) > pages:
        most -= 1  # at most a page of steps: each sequence begins its last page anew
    return most


def answer_length(prepared: Prepared, asked: int | None, info: EngineInfo, param: str) -> int:
    """How many tokens an answer may have; ``asked`` at ``param``, None: as many as there can be.

    Raises:
        RequestError: more were asked for than there is room.
    """
    if asked is None:
        # Too little for the branches is refused with its reason.
        return max(room_for_all(prepared.length, prepared.branches, info), 1)
    if asked > room(info) - prepared.length:
        message = (
            f"The prompt has {prepared.length} tokens and {asked} more were asked for; "
            f"together they may be {room(info)}."
        )
        raise RequestError(message, code="context_length_exceeded", param=param)
    return asked


def check_length(length: int, info: EngineInfo, param: str) -> None:
    """Refuse a prompt of ``length`` tokens that leaves no room for an answer.

    Raises:
        RequestError: there is none.
    """
    if length >= room(info):
        message = f"The prompt has {length} tokens; with its answer it may have {room(info)}."
        raise RequestError(message, code="context_length_exceeded", param=param)


def check_one_step(prepared: Prepared, info: EngineInfo) -> None:
    """Refuse a prompt that must be computed in one step, and is too long for that.

    Raises:
        InterventionError: the prompt is too long; names the first intervention that needs one step.
    """
    needed = one_step_tokens((prepared, *prepared.branches))
    if needed <= info.max_batched_tokens:
        return
    source = _needs_one_step(prepared)
    others = " with its branches" if prepared.branches else ""
    message = (
        f"{prepared.interventions[source].method_id()} needs the whole prompt prefilled in one "
        f"step, {needed} tokens{others}; this server computes {info.max_batched_tokens} tokens a "
        "step (max_batched_tokens)"
    )
    raise InterventionError(Code.INVALID_PARAMS, message, f"interventions[{source}]")


def check_min_tokens(sampling: SamplingParams, info: EngineInfo) -> None:
    """Refuse an answer that can never have the least number of tokens that was asked for.

    Raises:
        RequestError: it cannot.
    """
    reason = why_min_tokens_refused(sampling, info)
    if reason is not None:
        raise RequestError(f"{reason}.", param="min_tokens")


def check_group(
    request: GenerateRequest,
    info: EngineInfo,
    why: Callable[[GenerateRequest, EngineInfo], str | None] = why_group_refused,
) -> None:
    """Refuse a request whose interventions, or trace, make it too large for this server.

    Raises:
        RequestError: they do.
    """
    reason = why(request, info)
    if reason is not None:
        message = f"{reason[0].upper()}{reason[1:]}."
        compares = request.trace is not None and request.trace.compares
        param = "trace.vhd" if compares and request.plan is None else "interventions"
        raise RequestError(message, code="request_too_large", param=param)


def _needs_one_step(prepared: Prepared) -> int:
    """The place of the first intervention that needs the prompt in one step."""
    rules = () if prepared.plan is None else prepared.plan.rules
    return min(rule.source for rule in rules if rule.needs().whole_prompt)


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE)
