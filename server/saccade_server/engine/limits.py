"""What an engine says of itself, and which requests it can never run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from saccade_interventions.needs import NOTHING
from saccade_interventions.plan import Plan
from saccade_kernels.batch import PAGE
from saccade_kernels.controls import ControlShape
from saccade_kernels.residual import RESIDUAL_VECTORS
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.request import BranchInput, EngineInfo, GenerateRequest, SamplingParams
from saccade_server.engine.rules.rounding import why_not_invariant
from saccade_server.engine.vectors import directions
from saccade_server.models.family import ServedModel

Member = GenerateRequest | BranchInput
"""A sequence of a group: the request's own, or a branch."""


class Planned(Protocol):
    """A prompt, and what it runs under."""

    @property
    def tokens(self) -> tuple[int, ...]: ...

    @property
    def plan(self) -> Plan | None: ...


def describe(
    model: ServedModel,
    config: EngineConfig,
    max_model_len: int,
    cache_tokens: int,
    sink_dims: tuple[int, ...],
    fingerprint: str = "",
    follows_grammars: bool = False,
) -> EngineInfo:
    """The loaded model and the engine's limits."""
    return EngineInfo(
        model=config.model,
        family=model.family,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        eos_token_ids=ends_known(model),
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_waiting=config.max_waiting,
        max_pixel_bytes=config.max_pixel_bytes,
        cache_tokens=cache_tokens,
        max_programs=config.max_programs,
        max_per_head_classes=config.max_per_head_classes,
        max_batched_tokens=config.max_batched_tokens,
        sink_dims=sink_dims,
        accepts_images=model.image_token_id is not None,
        follows_grammars=follows_grammars,
        batch_invariant=config.batch_invariant,
        fingerprint=fingerprint,
    )


def ends_known(model: ServedModel) -> tuple[int, ...]:
    """The model's end-of-sequence tokens, those of its vocabulary."""
    return tuple(t for t in model.eos_token_ids if 0 <= t < model.vocab_size)


def ends_of(sampling: SamplingParams, info: EngineInfo) -> tuple[int, ...]:
    """End-of-sequence and stop tokens, each once: those that ``min_tokens`` holds back."""
    return tuple(sorted({*sampling.stop_token_ids, *info.eos_token_ids}))


def why_refused(request: GenerateRequest, info: EngineInfo) -> str | None:
    """Why a request can never run; the API has checked the same, this is the last line."""
    sampling = request.sampling
    if sampling.max_tokens < len(request.given):
        return f"max_tokens must be at least {len(request.given)}"
    if request.grammar is not None and (request.given or sampling.forced):
        return "tokens of an answer that a grammar holds are drawn, not given or forced"
    if request.given and acts_on_draws(request.plan):
        return "the plan acts where tokens are drawn, and the answer's first tokens are not"
    named = (*sampling.logit_bias, *sampling.stop_token_ids, *sampling.forced, *request.given)
    if any(not 0 <= token < info.vocab_size for token in named):
        return "a token is not in the vocabulary"
    reason = why_min_tokens_refused(sampling, info)
    if reason is not None:
        return reason
    for member in _members(request):
        reason = _why_member_refused(member, sampling.max_tokens, info)
        if reason is not None:
            return reason
    return why_group_refused(request, info)


def acts_on_draws(plan: Plan | None) -> bool:
    """True if tokens of an answer must be drawn, one by one, for the plan to act as it says."""
    needs = NOTHING if plan is None else plan.needs
    return bool(needs.draws or needs.branches or needs.last_row_twice or needs.own_programs)


def why_min_tokens_refused(sampling: SamplingParams, info: EngineInfo) -> str | None:
    """Why an answer can never have the least number of tokens that was asked for."""
    if not 0 <= sampling.min_tokens <= sampling.max_tokens:
        return f"min_tokens must be from 0 to max_tokens, which is {sampling.max_tokens}"
    if sampling.min_tokens and len(ends_of(sampling, info)) >= info.vocab_size:
        return "min_tokens leaves no token to draw: every token of the vocabulary is a stop token"
    return None


def why_group_refused(request: GenerateRequest, info: EngineInfo) -> str | None:
    """Why a sequence and its branches can never run together, each of them being well."""
    return why_too_many(request, info) or why_too_long(request, info)


def why_too_many(request: GenerateRequest, info: EngineInfo) -> str | None:
    """Why a sequence and its branches can never run together, however short they are."""
    if _kinds(request) != _wanted(request):
        return "the branches are not those that the plan asks for, or the trace"
    members = _members(request)
    if len(members) > info.max_num_seqs:
        return (
            f"the request runs as {len(members)} sequences at once, and the server "
            f"computes {info.max_num_seqs}"
        )
    plans = [member.plan for member in members if member.plan is not None]
    reason = why_not_invariant(plans, info)
    if reason is not None:
        return reason
    keys = {key for plan in plans for key in plan.program_keys.values()} - {None}
    if len(keys) > info.max_programs:
        return f"the plans need {len(keys)} programs, and the server holds {info.max_programs}"
    apart = sum(1 for plan in plans if plan.needs.per_head_classes)
    if apart > info.max_per_head_classes:
        return (
            f"{apart} sequences of the request have heads with key classes of their own, and the "
            f"server holds {info.max_per_head_classes} such"
        )
    named = {found for plan in plans for found in directions(plan)}
    if len(named) >= RESIDUAL_VECTORS:
        return f"the plans need {len(named)} vectors, and the server holds {RESIDUAL_VECTORS - 1}"
    return None


def why_too_long(request: GenerateRequest, info: EngineInfo) -> str | None:
    """Why a sequence and its branches can never run with a prompt of this length."""
    members = _members(request)
    pages = sum(-(-_longest(m, request.sampling.max_tokens) // PAGE) for m in members)
    if pages > -(-info.cache_tokens // PAGE):
        return (
            f"the request and its branches need {pages * PAGE} tokens of cache, and the server "
            f"has {info.cache_tokens}"
        )
    prompts = one_step_tokens(members)
    if prompts > info.max_batched_tokens:
        return (
            f"the prompt must be computed in one step, and has {prompts} tokens with its branches; "
            f"a step has {info.max_batched_tokens}"
        )
    return None


def one_step_tokens(members: Iterable[Planned]) -> int:
    """How many tokens a sequence and its branches must compute in one step; 0: prompts in chunks"""
    known = tuple(members)
    whole = any(member.plan is not None and member.plan.needs.whole_prompt for member in known)
    return sum(len(member.tokens) for member in known) if whole else 0


def _why_member_refused(member: Member, max_tokens: int, info: EngineInfo) -> str | None:
    """Why a sequence, or a branch, can never run, whatever else there is."""
    if not member.tokens:
        return "the prompt is empty"
    if _longest(member, max_tokens) > info.max_model_len:
        return f"prompt and max_tokens exceed the limit of {info.max_model_len} tokens"
    if not _are_known(member, info.vocab_size):
        return "a token is not in the vocabulary"
    if any(i.start < 0 or i.start + i.length > len(member.tokens) for i in member.images):
        return "an image reaches beyond the prompt"
    plan = member.plan
    if plan is not None:
        if plan.shape != ControlShape(info.layers, info.heads, info.head_dim):
            return "the plan was made for another model"
        if plan.prompt_length != len(member.tokens):
            return "the plan was made for another prompt"
        named = {edit.direction for edit in plan.residuals}
        if any(v.size != info.hidden_size for v in plan.vectors if v.digest in named):
            return "the plan's vectors were made for another model"
        if any(slot.end > plan.prompt_length for slot in plan.key_weights):
            return "the plan weighs keys beyond the prompt"
    return None


def _are_known(member: Member, vocab_size: int) -> bool:
    """True if all tokens are in the vocabulary."""
    try:
        return bool(member.ids.min() >= 0 and member.ids.max() < vocab_size)
    except OverflowError:  # more than 64 bits
        return False


def _members(request: GenerateRequest) -> tuple[Member, ...]:
    return (request, *request.branches)


def _longest(member: Member, max_tokens: int) -> int:
    """Tokens it has in the end; a branch that measures ends with its prompt."""
    measures = isinstance(member, BranchInput) and member.measures
    return len(member.tokens) + (0 if measures else max_tokens)


def _kinds(request: GenerateRequest) -> tuple[int, int, int]:
    """Branches that contrast, that measure, and that a trace compares with."""
    compared = sum(1 for branch in request.branches if branch.trace is not None)
    measuring = sum(1 for branch in request.branches if branch.measures)
    return len(request.branches) - measuring - compared, measuring, compared


def _wanted(request: GenerateRequest) -> tuple[int, int, int]:
    """The same of what a request asks for."""
    needs = NOTHING if request.plan is None else request.plan.needs
    measuring = sum(1 for branch in needs.branches if branch.measures)
    compared = request.trace is not None and request.trace.compares
    return len(needs.branches) - measuring, measuring, int(compared)
