"""The engine: sequences go in, one step at a time tokens come out. Single thread.

It knows plans, never a method's name, and token ids, never text.

With overlap a step is scheduled and launched while the one before it runs, and only then are that
one's tokens read. A sequence may turn out to have ended meanwhile: what the launched step computes
for it is dropped. Sequences whose draws need the tokens before them (penalties) skip such a step.
"""

from __future__ import annotations

import logging
import time
import traceback

import torch

from saccade_server.engine.chunk import Chunk, by_leader
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.flight import InFlight
from saccade_server.engine.grammar_state import GrammarStop
from saccade_server.engine.grammars import NO_GRAMMARS, Grammars
from saccade_server.engine.groups import form
from saccade_server.engine.limits import describe, ends_of, why_refused
from saccade_server.engine.masks import Masks
from saccade_server.engine.memory import (
    ADVICE,
    choose_cache_tokens,
    out_of_memory_explained,
)
from saccade_server.engine.pages import PagePool
from saccade_server.engine.request import (
    NOT_FINITE,
    Counter,
    EngineOutput,
    EngineStats,
    FinishReason,
    GenerateRequest,
    Receipt,
)
from saccade_server.engine.rows import PlanRows
from saccade_server.engine.runner import Runner
from saccade_server.engine.sampler import Sample
from saccade_server.engine.scheduler import Scheduler
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.tables import sites
from saccade_server.engine.tally import Gaps
from saccade_server.engine.timing import timing_of
from saccade_server.engine.warmup import warm_up
from saccade_server.grammars.vocabulary import Vocabulary
from saccade_server.logs.context import fields
from saccade_server.models.family import ServedModel

logger = logging.getLogger(__name__)


class EngineCore:
    """Continuous batching over one model."""

    def __init__(
        self,
        model: ServedModel,
        config: EngineConfig,
        sink_dims: tuple[int, ...] = (),
        fingerprint: str = "",
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """
        Args:
            vocabulary: of the model's tokens; None: no request can have a grammar.
        """
        limit = config.context_limit(model.max_position)
        cache_tokens = choose_cache_tokens(model, config, limit)
        limit = min(limit, cache_tokens)
        with out_of_memory_explained("making the key-value cache and capturing CUDA graphs"):
            self._runner = Runner(model, config, limit, cache_tokens, sink_dims)
            if model.device.type == "cuda":
                warm_up(self._runner, min(limit, config.max_batched_tokens))
            self.captured = self._runner.capture()
        self._runner.tally.clear()
        rows = PlanRows(
            self._runner.tables,
            config.max_programs + 1,
            config.max_num_seqs + 1,
            per_head_rows=config.max_per_head_classes + 1,
        )
        self._scheduler = Scheduler(
            PagePool(self._runner.num_pages),
            rows,
            config.max_num_seqs,
            config.max_batched_tokens,
            config.prefix_caching,
        )
        self._overlap = config.overlaps(model.device)
        self._grammars = Grammars(vocabulary, model.device)
        self._flying: InFlight | None = None
        self._sequences: dict[str, Sequence] = {}
        self._steps = 0
        self._gaps = Gaps()
        self._landed = 0.0  # when the last step that is known had been computed
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self.info = describe(
            model, config, limit, cache_tokens, sink_dims, fingerprint, self._grammars.known
        )

    @property
    def busy(self) -> bool:
        """True while a step would do something."""
        return bool(self._sequences)

    @property
    def steps(self) -> int:
        """Steps launched so far."""
        return self._steps

    def submit(self, request: GenerateRequest) -> EngineOutput | None:
        """Queue a request; returns its only output at once if it cannot be run."""
        if request.grammar is not None and not self._grammars.known:
            return _failed(request.request_id, NO_GRAMMARS)
        reason = why_refused(request, self.info) or self._runner.rules.why_refused(request)
        if request.request_id in self._sequences:
            reason = "a request with this id is running"
        if reason is not None:
            return _failed(request.request_id, reason)
        sequence = form(request)
        sequence.moments.arrived = time.monotonic()
        sequence.ends = ends_of(request.sampling, self.info)
        self._runner.rules.admit(sequence)
        self._grammars.admit(sequence)
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
        """Compute one batch and return what is new; with overlap, what the one before gave."""
        late = self._scheduler.waiting.late(time.monotonic())
        unstarted = [self._finish(sequence, FinishReason.LATE) for sequence in late]
        unstarted += [self._stop(*failed) for failed in self._grammars.settle()]
        chunks = self._scheduler.schedule()
        unstarted += self._fail_unprepared()
        before, self._flying = self._flying, None
        launched, failure = self._launch(chunks, before) if chunks else (None, None)
        if failure is not None:
            return unstarted + self._land(before) + self._isolate(chunks, failure)
        if not self._overlap:
            before, launched = launched, None
        self._flying = launched
        if before is None and launched is None and not unstarted:
            self._grammars.wait()
        return unstarted + self._land(before)

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
            forms=self._runner.forms(),
            between_tokens=self._gaps.seconds.copy(),
            step_tokens=self._runner.tally.tokens.copy(),
        )

    def _launch(
        self, chunks: list[Chunk], before: InFlight | None = None
    ) -> tuple[InFlight | None, str | None]:
        """A launched step, or how it failed: in words, for the error would keep its memory.

        Where grammars hold some of its draws, ``before``, the step that runs, is read on the way.
        """

        def masks(held: tuple[Sequence, ...]) -> Masks:
            found = () if before is None else before.wait()
            return self._grammars.masks(held, found)

        try:
            flight = self._runner.launch(chunks, masks)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                logger.warning("a step ran out of GPU memory: %s", ADVICE)
            return None, "".join(traceback.format_exception(error))
        for measured in self._scheduler.start(chunks):
            self._runner.forget(measured)
        self._steps += 1
        return flight, None

    def _land(self, flight: InFlight | None) -> list[EngineOutput]:
        """Book what was computed, add drawn tokens, and end what is finished or unusable."""
        if flight is None:
            return []
        found = flight.wait()
        self._landed = time.monotonic()
        outputs = [
            self._diverge(chunk.sequence)
            for chunk, drawn in found
            if drawn is None and chunk.draws and self._runs(chunk.sequence)
        ]
        # Nothing ends between here and the tokens, and those end nobody else's sequence.
        landed = [(chunk, drawn) for chunk, drawn in found if self._runs(chunk.sequence)]
        if flight.pending:
            landed = [(c, drawn) for c, drawn in landed if not self._runs_again(flight, c)]
        # Only now can pages be found by others; branches may come before their leader.
        for chunk, _ in landed:
            self._scheduler.complete(chunk)
        outputs += [self._accept(c.sequence, drawn) for c, drawn in landed if drawn is not None]
        self._gaps.close(self._landed)
        return outputs

    def _runs_again(self, flight: InFlight, chunk: Chunk) -> bool:
        """Have the last row of a chunk run again, without its token, if a rule has decided so."""
        plan = flight.again(chunk)
        if plan is not None:
            chunk.sequence.repeat(_repeats(chunk.sequence))
            self._scheduler.run_again(chunk, plan)
        return plan is not None

    def _runs(self, sequence: Sequence) -> bool:
        """False if the sequence, or its group, has ended while it was computed."""
        leader = sequence.leader or sequence
        known = self._sequences.get(leader.request.request_id) is leader
        return known and (sequence is leader or sequence in leader.branches)

    def _accept(self, sequence: Sequence, drawn: Sample) -> EngineOutput:
        """Append a token, and end the sequence if it was the last one."""
        grammar = sequence.grammar
        if grammar is not None and (stop := grammar.stops(sequence.generated)) is not None:
            return self._stop(sequence, stop)
        request, token = sequence.request, drawn.token
        sampling, moments = request.sampling, sequence.moments
        if sequence.generated == len(request.given):
            moments.first = self._landed
            self._prompt_tokens += sequence.prompt_length + len(request.given)
        else:
            self._gaps.note(moments.last)
        moments.last = self._landed
        if sequence.is_complete:  # its last row has run, and what it draws is not asked for
            return self._finish(sequence, FinishReason.LENGTH)
        sequence.append(token)
        for branch in sequence.branches:
            branch.append(token)
        if sequence.plan is not None:
            self._runner.rules.accepted(sequence)
        self._generated_tokens += 1
        ended = token in sampling.stop_token_ids or (
            token in self.info.eos_token_ids and (grammar is not None or not sampling.ignore_eos)
        )
        if grammar is not None and grammar.known < sequence.generated:
            self._grammars.tell(sequence, token)
        reason = FinishReason.STOP if ended else None
        if reason is None and sequence.generated >= sampling.max_tokens:
            reason = FinishReason.LENGTH
        logprobs = () if drawn.logprobs is None else (drawn.logprobs,)
        if reason is not None:
            return self._finish(sequence, reason, tokens=(token,), logprobs=logprobs)
        return EngineOutput(
            request_id=request.request_id,
            tokens=(token,),
            logprobs=logprobs,
            cached_tokens=sequence.cached_tokens,
            trace=() if sequence.traced is None else sequence.traced.take(),
        )

    def _stop(self, sequence: Sequence, stop: GrammarStop) -> EngineOutput:
        """End a sequence whose grammar cannot go on."""
        return self._finish(sequence, FinishReason.ERROR, stop.reason, failure=stop.kind)

    def _diverge(self, sequence: Sequence) -> EngineOutput:
        """End a sequence whose logits are not finite; with a plan, that is the plan's doing."""
        diverged = sequence.plan is not None
        return self._finish(sequence, FinishReason.ERROR, NOT_FINITE, diverged=diverged)

    def _finish(
        self, sequence: Sequence, reason: FinishReason, error: str | None = None, **news: object
    ) -> EngineOutput:
        receipt = None
        if sequence.plan is not None:
            if sequence.tag_row and sequence.plan.masses and not self._overlap:
                self._runner.read_moved(sequence)
            moved = () if sequence.moved is None else sites(sequence.moved)
            counters = tuple(Counter(*key, value) for key, value in sequence.counts.items())
            findings = tuple(sequence.findings.values())
            receipt = Receipt(dict(sequence.rows_touched), moved, counters, findings)
        self._scheduler.remove(sequence)
        self._grammars.forget(sequence)
        for member in sequence.group:
            self._runner.forget(member)
        del self._sequences[sequence.request.request_id]
        return EngineOutput(
            request_id=sequence.request.request_id,
            finish_reason=reason,
            error=error,
            cached_tokens=sequence.cached_tokens,
            receipt=receipt,
            trace=() if sequence.traced is None else sequence.traced.take(last=True),
            grammar=None if sequence.grammar is None else sequence.grammar.count,
            holds=b"" if sequence.grammar is None else sequence.grammar.holds,
            timing=timing_of(sequence),
            **news,  # type: ignore[arg-type]
        )

    def _fail_unprepared(self) -> list[EngineOutput]:
        """End the sequences whose plans could not be written to the device."""
        failed, self._scheduler.failed = self._scheduler.failed, []
        return [self._fail(sequence, failure) for sequence, failure in failed]

    def _fail(self, sequence: Sequence, failure: str) -> EngineOutput:
        """End a sequence that the model, or the device, fails on when nothing else runs."""
        request = sequence.request
        said = fields(**request.origin.fields)
        logger.error("request %s failed: %s", request.request_id, failure, extra=said)
        return self._finish(sequence, FinishReason.ERROR, "the model failed on this request")

    def _isolate(self, chunks: list[Chunk], failure: str) -> list[EngineOutput]:
        """A launch failed: run its groups one by one and fail only those that fail alone.

        Nothing is in flight, so all tokens are known. A single group is tried again too: memory
        may have been short for a moment.
        """
        logger.warning(
            "a step of %d sequences failed; each is tried alone: %s", len(chunks), failure
        )
        outputs: list[EngineOutput] = []
        for sequence, own in by_leader(chunks).items():
            if not self._runs(sequence):  # the step before was its last
                continue
            self._runner.recover()
            launched, failure_alone = self._launch(own)
            if failure_alone is None:
                outputs += self._land(launched)
                continue
            outputs.append(self._fail(sequence, failure_alone))
        return outputs


def _repeats(sequence: Sequence) -> int:
    """The place of the intervention that has the sequence's last prompt row run again."""
    rules = () if sequence.plan is None else sequence.plan.rules
    return next((rule.source for rule in rules if rule.needs().last_row_twice), -1)


def _failed(request_id: str, reason: str) -> EngineOutput:
    return EngineOutput(request_id=request_id, finish_reason=FinishReason.ERROR, error=reason)
