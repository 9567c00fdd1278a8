"""What chat and plain completions share: identity, usage, receipts, running to the end."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import saccade_server
from saccade_server.api import prompt_scores
from saccade_server.api.body.schemas import Sampled
from saccade_server.api.choice import Choice, Delta
from saccade_server.api.detections import detected
from saccade_server.api.errors import begun
from saccade_server.api.generation import Generation
from saccade_server.api.ids import new_id
from saccade_server.api.layers.observe import error_log
from saccade_server.api.layers.record import Record
from saccade_server.api.prompt_scores import PromptScores, PromptScoring, entries_of
from saccade_server.api.reading import Call
from saccade_server.api.recording import note_answer
from saccade_server.api.selection import PROFILE_FIELD, PROFILE_HEADER, Selection
from saccade_server.api.services import Services
from saccade_server.api.sse import KEEP_ALIVE, EventStream, frame, unless_disconnected
from saccade_server.engine.request import TokenLogprobs
from saccade_server.logs.context import request_id
from saccade_server.requests.noops import noops
from saccade_server.requests.prepared import Prepared
from saccade_server.requests.receipts import applied, fingerprint, published
from saccade_server.requests.traces.options import TraceOptions

FINGERPRINT_HEADER = "x-intervention-fingerprint"

Events = Callable[[Delta], bytes]
"""The framed events that say what is new about a choice."""


@dataclass(frozen=True)
class Answer:
    """One request that is being answered."""

    record: Record
    services: Services
    selection: Selection
    prompts: Sequence[Prepared]
    generation: Generation
    prefix: str
    object: str
    scoring: PromptScoring
    ignored: Mapping[str, str] = field(default_factory=dict)  # header of fields without effect
    trace: TraceOptions | None = None
    name: str = field(default_factory=new_id)
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def headers(self) -> dict[str, str]:
        """Headers of the response, whatever its form."""
        headers = dict(self.ignored)
        if self.selection.interventions:
            headers[FINGERPRINT_HEADER] = fingerprint(self.selection.interventions)
        if self.selection.profile is not None:
            headers[PROFILE_HEADER] = self.selection.profile
        return headers

    def envelope(self, **content: Any) -> dict[str, Any]:
        """The fields that every body and every chunk begin with."""
        return {
            "id": f"{self.prefix}-{self.name}",
            "object": self.object,
            "created": self.created,
            "model": self.selection.model,
            "system_fingerprint": self.system_fingerprint,
            **content,
        }

    def echo_of(self, index: int) -> str:
        """What stands before the answer's own text in a choice."""
        if not self.scoring.echo:
            return ""
        return self.prompts[index * len(self.prompts) // len(self.generation.choices)].prompt.text

    def prompt_of(self, index: int) -> PromptScores:
        """The prompt of a choice that has begun, as its answer shows it."""
        choices = self.generation.choices
        copies = len(choices) // len(self.prompts)
        prepared = self.prompts[index // copies]
        own, first = choices[index], choices[index - index % copies]
        methods = [item.method_id() for item in prepared.interventions]
        return PromptScores(self.scoring, prepared, entries_of(own.scores or first.scores, methods))

    async def written(self, write: Callable[[], dict[str, Any]]) -> Response:
        """A body that is not streamed, as ``write`` makes it: in a worker if it takes long."""
        copies = len(self.generation.choices) // len(self.prompts)
        if self.scoring.numbers(self.prompts, copies) > prompt_scores.OFF_LOOP_NUMBERS:
            return await self.services.in_worker(lambda: self.json(write()))
        return self.json(write())

    def usage(self) -> dict[str, Any]:
        """Token counts; a prompt counts once however many answers it has."""
        choices = self.generation.choices
        copies = len(choices) // len(self.prompts)
        prompt = sum(item.length for item in self.prompts)
        completion = sum(choice.completion_tokens for choice in choices)
        cached = sum(choice.run.cached_tokens for choice in choices[::copies])
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        details = published(self.generation.runs) or {}
        if self.prompts[0].prompt.thought is not None:
            details["reasoning_tokens"] = sum(choice.reasoning_tokens for choice in choices)
        if details:
            usage["completion_tokens_details"] = details
        return usage

    def usage_so_far(self, body: Sampled) -> dict[str, Any]:
        """What a chunk before the last says of its usage."""
        if body.continuous_usage:
            return {"usage": self.usage()}
        return {"usage": None} if body.include_usage else {}

    def receipt(self) -> dict[str, Any]:
        """What to add once all is done: nothing if no intervention was asked for."""
        chosen = self.selection
        profile = {} if chosen.profile is None else {PROFILE_FIELD: chosen.profile}
        if not chosen.interventions:
            return profile
        return {
            **profile,
            "interventions_applied": applied(
                chosen.interventions, self.prompts[0].interventions, self.generation.runs
            ),
        }

    def book(self) -> None:
        """Count the interventions that should have run and did not, once all is done."""
        self.record.lost = tuple(noops(self.selection.interventions, self.generation.choices))
        for method in self.record.lost:
            self.services.noops[method] += 1
            error_log.error("request %s: %s acted on nothing", request_id.get(), method)

    async def whole(self, request: Request) -> list[Collected]:
        """Generate to the end, unless the client leaves."""
        return await unless_disconnected(request.receive, self._collect())

    def json(self, body: dict[str, Any]) -> Response:
        """Send a body that is not streamed."""
        return Response(msgspec.json.encode(body), 200, self.headers, "application/json")

    def stream(self, events: Events, body: Sampled) -> EventStream:
        """Send what ``events`` makes of each delta as it comes."""
        told = self._events(events, body.include_usage)
        return EventStream(told, self.headers, partial(self.generation.shorten, events))

    async def _events(self, events: Events, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """What is to be written at once: the events of a step, or that nothing was said."""
        patience = self.services.settings.sse_keep_alive
        tell: Callable[[Delta], bytes | Delta] = events
        if any(_reads(choice) for choice in self.generation.choices):
            tell = partial(self._unless_traced, events)
        async with self._noted() as work:
            async for told in work.told(tell, patience):
                yield b"".join([await self._event(events, item) for item in told]) or KEEP_ALIVE
        self.book()
        if include_usage:  # a chunk after the last choice has ended
            yield frame(self.envelope(choices=[], usage=self.usage(), **self.receipt()))

    @asynccontextmanager
    async def _noted(self) -> AsyncIterator[Generation]:
        """The running generation, of which the record learns however it ends.

        From here on the request is begun, whatever it is that fails: no other server is to get it.
        """
        try:
            async with self.generation as generation:
                try:
                    yield generation
                except Exception as error:
                    raise begun(error) from error.__cause__
        finally:
            note_answer(self.record, self.prompts, self.generation)

    async def _collect(self) -> list[Collected]:
        collected = [Collected() for _ in self.generation.choices]
        async with self._noted() as generation:
            async for _ in generation.told(lambda delta: collected[delta.index].add(delta)):
                pass
            for choice, found in zip(generation.choices, collected, strict=True):
                found.trace = await self._trace(choice)
                found.detectors = await self._detected(choice)
        self.book()
        return collected

    def _unless_traced(self, events: Events, delta: Delta) -> bytes | Delta:
        """The events of a delta; the delta itself if something is still to be made of a trace."""
        reads = _reads(self.generation.choices[delta.index])
        return delta if delta.finish_reason and reads else events(delta)

    async def _event(self, events: Events, told: bytes | Delta) -> bytes:
        if isinstance(told, bytes):
            return told
        choice = self.generation.choices[told.index]
        trace, found = await self._trace(choice), await self._detected(choice)
        return events(msgspec.structs.replace(told, trace=trace, detectors=found))

    async def _detected(self, choice: Choice) -> list[dict[str, Any]] | None:
        """What detectors found in a choice that has ended."""
        if choice.watched is None:
            return None
        async with self.generation.deadline.kept():
            return await detected(self.services, choice, choice.watched)

    async def _trace(self, choice: Choice) -> msgspec.Raw | None:
        """What a choice that has ended says of its trace."""
        if self.trace is None or choice.trace is None or choice.pieces is None:
            return None
        make = self.services.traces.answer
        return await make(self.trace, choice.trace, choice.pieces, choice.completion_tokens)

    @cached_property
    def system_fingerprint(self) -> str:
        """Names what the answer depends on besides the request's content."""
        # Nothing in it may differ between replicas, such as the folder of the model.
        name, dtype = self.services.settings.served_model_name, self.services.engine.info.dtype
        parts = [saccade_server.__version__, name, dtype]
        if FINGERPRINT_HEADER in self.headers:
            parts.append(self.headers[FINGERPRINT_HEADER])
        return "fp_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@dataclass
class Collected:
    """One choice, complete."""

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    trace: msgspec.Raw | None = None
    detectors: list[dict[str, Any]] | None = None
    structured_output: dict[str, Any] | None = None

    def add(self, delta: Delta) -> None:
        """Append what is new."""
        self.text += delta.text
        self.reasoning += delta.reasoning
        for call in delta.calls:
            if call.id is not None:
                self.calls.append(Call(call.id, call.name or ""))
            self.calls[call.index].arguments += call.arguments
        self.logprobs += delta.logprobs
        self.offsets += delta.offsets
        self.finish_reason = delta.finish_reason
        self.structured_output = delta.structured_output


def _reads(choice: Choice) -> bool:
    """Whether something is to be made of what a choice reads, once it has ended."""
    return choice.trace is not None or choice.watched is not None


def traced(said: Delta | Collected) -> dict[str, Any]:
    """What a choice has besides: what its grammar did, its trace, and what detectors found."""
    names = ("structured_output", "trace", "detectors")
    found = {name: getattr(said, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}
