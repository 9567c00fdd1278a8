"""Add the chunks of a stream up to the answer that the same request gives without streaming."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from saccade_client.traces import Trace
from saccade_client.types import (
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    Detected,
    PromptLogprobs,
    TextChoice,
)

ChunkT = TypeVar("ChunkT", bound=ChatChunk | CompletionChunk)
FinalT = TypeVar("FinalT", bound=ChatCompletion | Completion)


HEAD = (
    *("id", "created", "model", "system_fingerprint", "intervention_profile", "usage"),
    "prompt_logprobs",
)


@dataclass(frozen=True)
class StreamKind(Generic[ChunkT, FinalT]):
    """How to parse a stream; `content` wraps a choice's text as the whole answer has it."""

    chunk: Callable[[Any], ChunkT]
    final: Callable[[Any], FinalT]
    content: Callable[[str], Mapping[str, Any]]


CHAT = StreamKind(
    ChatChunk.model_validate,
    ChatCompletion.model_validate,
    lambda text: {"message": {"role": "assistant", "content": text}},
)
TEXT = StreamKind(
    CompletionChunk.model_validate, Completion.model_validate, lambda text: {"text": text}
)


@dataclass
class Answer:
    """One choice under construction; its log probabilities are lists that grow side by side."""

    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    trace: Trace | None = None
    detectors: list[Detected] | None = None
    prompt_logprobs: PromptLogprobs | None = None

    def add_logprobs(self, logprobs: Mapping[str, Any]) -> None:
        for name, values in logprobs.items():
            if isinstance(values, list):
                self.logprobs.setdefault(name, []).extend(values)


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
            if isinstance(choice, TextChoice):
                answer.prompt_logprobs = choice.prompt_logprobs or answer.prompt_logprobs
            if choice.logprobs is not None:
                answer.add_logprobs(choice.logprobs.model_dump(exclude_unset=True))

    @property
    def text(self) -> str:
        """What the first choice has said so far."""
        return "".join(self._answers[0].pieces) if 0 in self._answers else ""

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
            "prompt_logprobs": answer.prompt_logprobs,
            **self._kind.content("".join(answer.pieces)),
        }
