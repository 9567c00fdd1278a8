"""The engine: sequences go in, one step at a time tokens come out. Synchronous, single thread.

It knows plans, never a method's name, and token ids, never text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.pages import PagePool
from saccade_server.engine.request import (
    EngineInfo,
    EngineOutput,
    EngineStats,
    FinishReason,
    GenerateRequest,
    Receipt,
)
from saccade_server.engine.rows import PlanRows
from saccade_server.engine.runner import Runner
from saccade_server.engine.sampler import Sample, sample
from saccade_server.engine.scheduler import Chunk, Scheduler
from saccade_server.engine.sequence import Sequence
from saccade_server.models.family import ServedModel

logger = logging.getLogger(__name__)


class EngineCore:
    """Continuous batching over one model."""

    def __init__(
        self, model: ServedModel, config: EngineConfig, sink_dims: tuple[int, ...] = ()
    ) -> None:
        self._config = config
        limit = config.context_limit(model.max_position)
        self._runner = Runner(model, config, limit)
        rows = PlanRows(self._runner.tables, config.max_programs + 1, config.max_num_seqs + 1)
        self._scheduler = Scheduler(
            PagePool(self._runner.num_pages),
            rows,
            config.max_num_seqs,
            config.max_batched_tokens,
            config.prefix_caching,
        )
        self._sequences: dict[str, Sequence] = {}
        self._steps = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self.info = _describe(model, config, limit, sink_dims)

    @property
    def busy(self) -> bool:
        """True while a step would do something."""
        return bool(self._sequences)

    def submit(self, request: GenerateRequest) -> EngineOutput | None:
        """Queue a request; returns its only output at once if it cannot be run."""
        reason = self._refuse(request)
        if reason is not None:
            return _failed(request.request_id, reason)
        sequence = Sequence(request)
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)
        return None

    def abort(self, request_id: str) -> EngineOutput | None:
        """End a sequence now; None if there is no such sequence."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        return self._finish(sequence, FinishReason.ABORT)

    def step(self) -> list[EngineOutput]:
        """Compute one batch and return what is new."""
        chunks = self._scheduler.schedule()
        if not chunks:
            return []
        try:
            step, logits = self._runner.run(chunks)
        except Exception as error:
            return self._isolate(chunks, error)
        self._steps += 1
        return self._advance(step.chunks, logits)

    def stats(self) -> EngineStats:
        """Load and lifetime counters."""
        scheduler = self._scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            cache_usage=scheduler.pages.usage,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            image_encodes=self._runner.features.encoded,
            plans=sum(1 for s in self._sequences.values() if s.plan is not None),
        )

    def _refuse(self, request: GenerateRequest) -> str | None:
        """Why a request can never run; the API has checked the same, this is the last line."""
        if request.request_id in self._sequences:
            return "a request with this id is running"
        if not request.tokens:
            return "the prompt is empty"
        if request.sampling.max_tokens < 1:
            return "max_tokens must be at least 1"
        if len(request.tokens) + request.sampling.max_tokens > self.info.max_model_len:
            return f"prompt and max_tokens exceed the limit of {self.info.max_model_len} tokens"
        named = (*request.tokens, *request.sampling.logit_bias)
        if min(named) < 0 or max(named) >= self.info.vocab_size:
            return "a token is not in the vocabulary"
        if any(i.start < 0 or i.start + i.length > len(request.tokens) for i in request.images):
            return "an image reaches beyond the prompt"
        plan = request.plan
        if plan is not None:
            shape = (plan.layers, plan.heads, plan.head_dim)
            if shape != (self.info.layers, self.info.heads, self.info.head_dim):
                return "the plan was made for another model"
            if plan.prompt_length != len(request.tokens):
                return "the plan was made for another prompt"
        return None

    def _advance(self, chunks: Iterable[Chunk], logits: torch.Tensor) -> list[EngineOutput]:
        """Book what was computed, draw tokens, and end what is finished or unusable."""
        sampling: list[Sequence] = []
        outputs: list[EngineOutput] = []
        usable = torch.isfinite(logits).all(-1).tolist()
        fine = iter(usable)
        for chunk in chunks:
            samples = chunk.samples
            if samples and not next(fine):  # before its pages can be found by others
                reason = "the model gave logits that are not finite"
                outputs.append(self._finish(chunk.sequence, FinishReason.ERROR, reason))
                continue
            self._scheduler.complete(chunk)
            if samples:
                sampling.append(chunk.sequence)
        if sampling:
            rows = logits if all(usable) else logits[[i for i, good in enumerate(usable) if good]]
            drawn = zip(sampling, sample(rows, sampling), strict=True)
            outputs += [self._accept(sequence, token) for sequence, token in drawn]
        return outputs

    def _accept(self, sequence: Sequence, drawn: Sample) -> EngineOutput:
        """Append a token, and end the sequence if it was the last one."""
        if sequence.generated == 0:
            self._prompt_tokens += sequence.prompt_length
        sequence.append(drawn.token)
        self._generated_tokens += 1
        sampling = sequence.request.sampling
        ended = drawn.token in sampling.stop_token_ids or (
            not sampling.ignore_eos and drawn.token in self.info.eos_token_ids
        )
        reason = FinishReason.STOP if ended else None
        if reason is None and sequence.generated >= sampling.max_tokens:
            reason = FinishReason.LENGTH
        logprobs = () if drawn.logprobs is None else (drawn.logprobs,)
        if reason is not None:
            return self._finish(sequence, reason, tokens=(drawn.token,), logprobs=logprobs)
        return EngineOutput(
            request_id=sequence.request.request_id,
            tokens=(drawn.token,),
            logprobs=logprobs,
            cached_tokens=sequence.cached_tokens,
        )

    def _finish(
        self, sequence: Sequence, reason: FinishReason, error: str | None = None, **news: object
    ) -> EngineOutput:
        receipt = None
        if sequence.plan is not None:
            moved = self._runner.tables.moved(sequence.tag_row) if sequence.tag_row else ()
            receipt = Receipt(dict(sequence.rows_touched), moved)
        self._scheduler.remove(sequence)
        self._runner.forget(sequence)
        del self._sequences[sequence.request.request_id]
        return EngineOutput(
            request_id=sequence.request.request_id,
            finish_reason=reason,
            error=error,
            cached_tokens=sequence.cached_tokens,
            receipt=receipt,
            **news,  # type: ignore[arg-type]
        )

    def _isolate(self, chunks: list[Chunk], error: Exception) -> list[EngineOutput]:
        """A step failed: run its chunks one by one and fail only those that fail alone."""
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        if len(chunks) == 1:
            sequence = chunks[0].sequence
            logger.error("request %s failed", sequence.request.request_id, exc_info=error)
            return [self._finish(sequence, FinishReason.ERROR, "the model failed on this request")]
        outputs: list[EngineOutput] = []
        for chunk in chunks:
            try:
                step, logits = self._runner.run([chunk])
            except Exception as alone:
                outputs += self._isolate([chunk], alone)
            else:
                outputs += self._advance(step.chunks, logits)
        return outputs


def _failed(request_id: str, reason: str) -> EngineOutput:
    return EngineOutput(request_id=request_id, finish_reason=FinishReason.ERROR, error=reason)


def _describe(
    model: ServedModel, config: EngineConfig, limit: int, sink_dims: tuple[int, ...]
) -> EngineInfo:
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
        max_model_len=limit,
        max_num_seqs=config.max_num_seqs,
        max_waiting=config.max_waiting,
        max_pixel_bytes=config.max_pixel_bytes,
        cache_tokens=config.cache_tokens,
        max_programs=config.max_programs,
        sink_dims=sink_dims,
        accepts_images=model.image_token_id is not None,
    )
