"""One sequence of an answer as its client sees it: text, logprobs, and how it ended.

Tokens become text here and nowhere else. Text that may yet turn out to be a stop string or half a
character is held back, and so are the logprobs of its tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Protocol

import msgspec

from saccade_server.api.deadline import too_late
from saccade_server.api.errors import EngineFailure
from saccade_server.api.layers.observe import error_log
from saccade_server.api.reading import CallDelta, Reader, Said
from saccade_server.api.stops import StopStrings
from saccade_server.engine.request import (
    EngineOutput,
    Failure,
    FinishReason,
    GenerateRequest,
    TokenLogprobs,
)
from saccade_server.engine.timing import Timing
from saccade_server.grammars.grammar import GrammarCount
from saccade_server.logs.context import request_id
from saccade_server.requests.detection import Detection
from saccade_server.requests.errors import RequestError, diverged
from saccade_server.requests.receipts import Run
from saccade_server.requests.scores import ScoreLog
from saccade_server.requests.traces.resolve import TracePlan


class Decoder(Protocol):
    """Tokens in, text out; holds back unfinished characters."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class Delta(msgspec.Struct, frozen=True):
    """What is new about one choice. ``offsets`` are where the texts of ``logprobs`` begin.

    ``text`` is what it says, ``reasoning`` what it thinks, ``calls`` what it calls.
    ``trace`` and ``detectors`` come with the last delta of a choice that has some, once they are
    made; the first is JSON. So does ``structured_output``, the receipt of its grammar.
    """

    index: int
    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    offsets: tuple[int, ...] = ()
    finish_reason: str | None = None
    trace: msgspec.Raw | None = None
    detectors: list[dict[str, Any]] | None = None
    structured_output: dict[str, Any] | None = None

    @property
    def says(self) -> bool:
        """Whether there is anything for the client in it."""
        new = self.text or self.reasoning or self.calls or self.logprobs or self.finish_reason
        return bool(new)


class Choice:
    """One sequence as the client sees it."""

    def __init__(
        self,
        index: int,
        request: GenerateRequest,
        decoder: Decoder,
        stops: StopStrings,
        end_tokens: frozenset[int],
        methods: tuple[str, ...] = (),
        trace: TracePlan | None = None,
        detection: Detection | None = None,
        shows_logprobs: bool = True,
        reader: Reader | None = None,
        grammar_at: str = "",
    ) -> None:
        """``methods``: the interventions of the request, for its error.

        ``reader``: what tells its reasoning and its calls from the rest; None: it has only text.
        ``shows_logprobs``: False if none but detectors asked for them. ``grammar_at``: the field
        that asked for its grammar, for errors. ``outcome`` is how it has ended so far, "" before
        the engine has it; see :class:`SequenceRecord`.
        """
        self.index = index
        self.request = request
        self.completion_tokens = 0
        self.done = False
        self.outcome = ""
        self.began = 0.0  # when it went to the engine, by time.monotonic
        self.timing: Timing | None = None
        self.run = Run(request.plan)
        self.trace = trace
        self.grammar = GrammarCount()
        self.pieces = None if trace is None else trace.collect()
        self.scores = ScoreLog.of(request)
        self.watched = None if detection is None else detection.collect()
        self._shows_logprobs = shows_logprobs
        self._reader = reader
        self._grammar_at = grammar_at
        self._decoder = decoder
        self._stops = stops
        self._least = request.sampling.min_tokens
        self._end_tokens = end_tokens
        self._methods = methods
        self._decoded = 0  # characters that left the decoder
        self._behind: list[int] = []  # and how many had, token by token; for a reader
        self._shown = 0
        self._waiting: list[tuple[int, int, TokenLogprobs]] = []  # end, start, entry

    @property
    def stopped(self) -> bool:
        """A stop string was found."""
        return self._stops.stopped

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of its reasoning, markers included: all so far while it goes on."""
        reasoned = 0.0 if self._reader is None else self._reader.reasoned
        if reasoned == 0:
            return 0
        return min(bisect_left(self._behind, reasoned) + 1, self.completion_tokens)

    @property
    def computed_tokens(self) -> int:
        """Tokens that it had room for of its own, once it has ended."""
        return len(self.request.tokens) - self.run.cached_tokens + self.completion_tokens

    @property
    def last_row(self) -> int:
        """Position of the last row that must have run for what is known; -1: none must have."""
        if self.completion_tokens == 0 and not self.done:
            return -1
        known = len(self.request.tokens) + len(self.request.given)
        return known + max(self.completion_tokens, 1) - 2

    def accept(self, news: int | EngineOutput) -> Delta:
        """Take what the engine sent; the result may say nothing new."""
        if isinstance(news, int):
            return self._accept_token(news)
        return self._accept_output(news)

    def _accept_token(self, token: int) -> Delta:
        if self.stopped:
            return self._delta("")
        self.completion_tokens += 1
        return self._delta(self._decode(token, None))

    def _accept_output(self, output: EngineOutput) -> Delta:
        text = ""
        if self.scores is not None:
            self.scores.take(output.trace)
        logprobs = iter(output.logprobs)
        last = len(output.tokens) - 1
        for position, token in enumerate(output.tokens):
            if self.stopped:
                break
            self.completion_tokens += 1
            entry = next(logprobs, None)
            ends = output.finish_reason is FinishReason.STOP and position == last
            if not (ends and token in self._end_tokens):
                text += self._decode(token, entry)
        for traced in (self.pieces, self.watched):
            if traced is not None:
                traced.add(output.trace, self.completion_tokens)
        if output.finish_reason is None:
            return self._delta(text)
        self.done = True
        self.timing = output.timing
        self.run = Run(self.request.plan, output.receipt, output.cached_tokens)
        if not self.stopped:
            text += self._stops.push(self._decoder.flush())
            text += self._stops.flush()
        ended = self._delta(text, self._finish(output))
        if self.request.grammar is None:
            return ended
        return msgspec.structs.replace(ended, structured_output=self._receipt(output))

    def note_unread(self, news: object) -> None:
        """Count what the engine sent when nobody waited for it any more."""
        if self.done or self.stopped:
            return
        if isinstance(news, int):
            self.completion_tokens += 1
        elif isinstance(news, EngineOutput):
            self.completion_tokens += len(news.tokens)
            if news.finish_reason is not None:
                late = news.finish_reason is FinishReason.LATE
                self.done, self.timing = True, news.timing
                self.outcome = "abort" if late else news.finish_reason.value
                self.run = Run(self.request.plan, news.receipt, news.cached_tokens)
                self.grammar = news.grammar or self.grammar

    def give_up(self) -> Delta:
        """The engine ended without a last output."""
        if not self.stopped:
            raise EngineFailure()
        self.done = True
        self.outcome = "stop"
        return self._delta("", "stop")

    def _decode(self, token: int, entry: TokenLogprobs | None) -> str:
        piece = self._decoder.push(token)
        start = self._decoded
        self._decoded += len(piece)
        if self._reader is not None:
            self._behind.append(self._decoded)
        if self.watched is not None:
            self.watched.say(token, None if entry is None else entry.logprob)
        if entry is not None and self._shows_logprobs:
            self._waiting.append((self._decoded, start, entry))
        if self.completion_tokens <= self._least:
            return self._stops.skip(piece)
        return self._stops.push(piece)

    def _delta(self, text: str, finish_reason: str | None = None) -> Delta:
        self._shown += len(text)
        said = Said(text)
        if self._reader is not None:
            said = self._reader.read(text, finish_reason is not None)
            if finish_reason == "stop" and self._reader.has_called:
                finish_reason = "tool_calls"
        new = Delta(self.index, said.text, said.reasoning, said.calls, finish_reason=finish_reason)
        if not self._waiting:
            return new
        ready = [item for item in self._waiting if item[0] <= self._shown]
        self._waiting = self._waiting[len(ready) :]
        logprobs = tuple(entry for _, _, entry in ready)
        offsets = tuple(start for _, start, _ in ready)
        return msgspec.structs.replace(new, logprobs=logprobs, offsets=offsets)

    def _receipt(self, output: EngineOutput) -> dict[str, Any] | None:
        """What the grammar did; None if a sequence that is ended early has not told.

        Behind a stop text the engine may have gone on, which is no part of the answer.
        """
        grammar, count = self.request.grammar, output.grammar
        if grammar is None or count is None:
            return None
        if self.stopped:
            count = GrammarCount.of(output.holds[: self.completion_tokens], complete=False)
        self.grammar = count
        return {
            "kind": grammar.kind,
            "constrained_tokens": count.constrained,
            "forced_tokens": count.forced,
            "complete": count.complete,
        }

    def _finish(self, output: EngineOutput) -> str:
        ran = output.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        if ran and self.request.grammar is not None and output.grammar is None:
            self.outcome = "error"
            error_log.error("request %s: the engine held no grammar", request_id.get())
            raise EngineFailure()
        if self.stopped or output.finish_reason is FinishReason.STOP:
            self.outcome = "stop"
            return self.outcome
        if output.finish_reason is FinishReason.LENGTH:
            self.outcome = "length"
            return self.outcome
        if output.finish_reason is FinishReason.LATE:
            raise too_late()
        self.outcome = "error"
        if output.failure is not None:  # the request's fault, and no alarm for the operator
            error_log.info("request %s: %s", request_id.get(), output.error)
            stuck = output.failure is Failure.GRAMMAR_STUCK
            at = "min_tokens" if stuck else self._grammar_at
            raise RequestError(output.error or "", code=output.failure, param=at)
        error_log.error("request %s: engine: %s", request_id.get(), output.error)
        if output.diverged:
            raise diverged(self._methods)
        raise EngineFailure()
