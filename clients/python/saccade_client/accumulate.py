"""Add the chunks of a stream up to the answer that the same request gives without streaming."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from saccade_client.answers import ChatChunk, ChatCompletion, Completion, CompletionChunk
from saccade_client.choices import ChatChunkChoice, Delta, Detected, TextChoice
from saccade_client.logprobs import ChatLogprobs, PromptLogprobs, TextLogprobs
from saccade_client.receipts import StructuredOutput
from saccade_client.tool_calls import ToolCalls
from saccade_client.traces import Trace

ChunkT = TypeVar("ChunkT", bound="ChatChunk | CompletionChunk")
FinalT = TypeVar("FinalT", bound="ChatCompletion | Completion")


HEAD = (
    *("id", "created", "model", "system_fingerprint", "intervention_profile", "usage"),
    "prompt_logprobs",
)


@dataclass
class Answer:
    """One choice under construction; its log probabilities are lists that grow side by side."""

    pieces: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    calls: ToolCalls = field(default_factory=ToolCalls)
    finish_reason: str | None = None
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    trace: Trace | None = None
    detectors: list[Detected] | None = None
    structured_output: StructuredOutput | None = None
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def add_delta(self, delta: Delta) -> None:
        self.reasoning.append(delta.reasoning_content or "")
        self.refusal.append(delta.refusal or "")
        for call in delta.tool_calls:
            self.calls.add(call)

    def add_logprobs(self, logprobs: ChatLogprobs | TextLogprobs) -> None:
        for name in logprobs.model_fields_set:
            values = getattr(logprobs, name)
            if isinstance(values, list):
                self.logprobs.setdefault(name, []).extend(values)


@dataclass(frozen=True)
class StreamKind(Generic[ChunkT, FinalT]):
    """How to parse a stream; `content` wraps what a choice said as the whole answer has it."""

    chunk: Callable[[Any], ChunkT]
    final: Callable[[Any], FinalT]
    content: Callable[[Answer], Mapping[str, Any]]


def chat_content(answer: Answer) -> dict[str, Any]:
    """A message; one that thinks or calls and says nothing has no content."""
    more = {
        "reasoning_content": "".join(answer.reasoning) or None,
        "refusal": "".join(answer.refusal) or None,
        "tool_calls": answer.calls.entries(),
    }
    text = answer.text or (None if any(more.values()) else "")
    return {"message": {"role": "assistant", "content": text, **more}}


CHAT = StreamKind(ChatChunk.model_validate, ChatCompletion.model_validate, chat_content)
TEXT = StreamKind(
    CompletionChunk.model_validate, Completion.model_validate, lambda answer: {"text": answer.text}
)


class Accumulator(Generic[ChunkT, FinalT]):
    """Takes chunks in order; usage and receipt are the last ones seen."""

    def __init__(self, kind: StreamKind[ChunkT, FinalT]) -> None:
        self._kind = kind
        self._head: dict[str, Any] = {}
        self._answers: dict[int, Answer] = {}

    def add(self, chunk: ChunkT) -> None:
        for name in HEAD:
            if value := getattr(chunk, name):
                self._head[name] = value
        if chunk.interventions_applied is not None:
            self._head["interventions_applied"] = chunk.interventions_applied
        for choice in chunk.choices:
            answer = self._answers.setdefault(choice.index, Answer())
            answer.pieces.append(choice.text)
            answer.finish_reason = choice.finish_reason or answer.finish_reason
            answer.trace = choice.trace or answer.trace
            answer.detectors = choice.detectors or answer.detectors
            answer.structured_output = choice.structured_output or answer.structured_output
            if isinstance(choice, ChatChunkChoice):
                answer.add_delta(choice.delta)
            if isinstance(choice, TextChoice):
                answer.prompt_logprobs = choice.prompt_logprobs or answer.prompt_logprobs
            if choice.logprobs is not None:
                answer.add_logprobs(choice.logprobs)

    @property
    def text(self) -> str:
        """What the first choice has said so far."""
        return self._answers[0].text if 0 in self._answers else ""

    def final(self) -> FinalT:
        choices = [self._choice(index) for index in sorted(self._answers)]
        return self._kind.final({**self._head, "choices": choices})

    def _choice(self, index: int) -> dict[str, Any]:
        answer = self._answers[index]
        return {
            "index": index,
            "finish_reason": answer.finish_reason,
            "logprobs": answer.logprobs or None,
            "trace": answer.trace,
            "detectors": answer.detectors,
            "structured_output": answer.structured_output,
            "prompt_logprobs": answer.prompt_logprobs,
            **self._kind.content(answer),
        }
