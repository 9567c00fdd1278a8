"""What an engine says of itself, and which requests it can never run."""

from __future__ import annotations

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.request import EngineInfo, GenerateRequest
from saccade_server.models.family import ServedModel


def describe(
    model: ServedModel,
    config: EngineConfig,
    max_model_len: int,
    cache_tokens: int,
    sink_dims: tuple[int, ...],
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
        eos_token_ids=tuple(t for t in model.eos_token_ids if 0 <= t < model.vocab_size),
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_waiting=config.max_waiting,
        max_pixel_bytes=config.max_pixel_bytes,
        cache_tokens=cache_tokens,
        max_programs=config.max_programs,
        sink_dims=sink_dims,
        accepts_images=model.image_token_id is not None,
    )


def why_refused(request: GenerateRequest, info: EngineInfo) -> str | None:
    """Why a request can never run; the API has checked the same, this is the last line."""
    if not request.tokens:
        return "the prompt is empty"
    if request.sampling.max_tokens < 1:
        return "max_tokens must be at least 1"
    if len(request.tokens) + request.sampling.max_tokens > info.max_model_len:
        return f"prompt and max_tokens exceed the limit of {info.max_model_len} tokens"
    named = (*request.tokens, *request.sampling.logit_bias)
    if min(named) < 0 or max(named) >= info.vocab_size:
        return "a token is not in the vocabulary"
    if any(i.start < 0 or i.start + i.length > len(request.tokens) for i in request.images):
        return "an image reaches beyond the prompt"
    plan = request.plan
    if plan is not None:
        shape = (plan.layers, plan.heads, plan.head_dim)
        if shape != (info.layers, info.heads, info.head_dim):
            return "the plan was made for another model"
        if plan.prompt_length != len(request.tokens):
            return "the plan was made for another prompt"
    return None
