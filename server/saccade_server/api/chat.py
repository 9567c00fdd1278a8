"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from saccade_server.api.access.standing import standing
from saccade_server.api.answers import Answer, traced
from saccade_server.api.body.foreign import CHAT
from saccade_server.api.body.ignored import note_ignored
from saccade_server.api.body.parsing import read_body
from saccade_server.api.body.schemas import ChatRequest
from saccade_server.api.body.unsupported import refuse_unsupported
from saccade_server.api.chat_message import REASONING, message, news
from saccade_server.api.choice import Delta
from saccade_server.api.chunks import TextEvents
from saccade_server.api.detections import detections
from saccade_server.api.errors import BadRequest
from saccade_server.api.layers.record import record_of
from saccade_server.api.logprobs import chat_logprobs
from saccade_server.api.openapi import examples
from saccade_server.api.openapi.document import POSTED, operation
from saccade_server.api.openapi.replies import ChatChunk, ChatCompletion
from saccade_server.api.prompt_scores import PromptScoring
from saccade_server.api.rendering import prepare_chat
from saccade_server.api.sampling import (
    check_request,
    generation,
    sampling_params,
    trace_plans,
)
from saccade_server.api.selection import select
from saccade_server.api.services import Services
from saccade_server.api.shape import shapes_of
from saccade_server.api.sse import frame, unless_disconnected
from saccade_server.api.templating import Templating, templating
from saccade_server.requests.detectors import parse_detectors


def chat_router(services: Services) -> APIRouter:
    """Make the route."""
    router = APIRouter(tags=["Answers"])

    described = operation(
        ChatCompletion,
        event=ChatChunk,
        body=ChatRequest,
        examples=examples.CHAT,
        refusals=(*POSTED, 422),
    )

    @router.post("/v1/chat/completions", openapi_extra=described)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation, under the interventions the request names."""
        body = await read_body(services, request, ChatRequest)
        answer = await unless_disconnected(request.receive, _prepare(services, body, request))
        if body.stream:
            return answer.stream(_Events(answer, body), body)
        choices = await answer.whole(request)
        return await answer.written(
            lambda: answer.envelope(
                choices=[
                    {
                        "index": index,
                        "message": message(choice),
                        "logprobs": _logprobs(answer, body, choice.logprobs),
                        "finish_reason": choice.finish_reason,
                        **traced(choice),
                    }
                    for index, choice in enumerate(choices)
                ],
                usage=answer.usage(),
                **answer.prompt_of(0).listed(services.prompts),
                **answer.receipt(),
            )
        )

    return router


async def _prepare(services: Services, body: ChatRequest, request: Request) -> Answer:
    record = record_of(request.scope)
    record.stream = bool(body.stream)
    refuse_unsupported(body.model_extra or {}, CHAT, services.prompts.knows_thinking)
    check_request(services, body)
    scoring = PromptScoring.of(body)
    how = templating(services.prompts, body)
    params = sampling_params(services, body, _alternatives(body))
    selection = select(services, body, request)
    detectors = parse_detectors(body.detectors)
    stands = standing(services.rates, body.priority, body.n or 1, services.settings.max_queue_time)
    async with stands.deadline.kept(), selection.explained():
        prompt = await prepare_chat(services, body.messages, selection.interventions, how)
        length = body.length[0]
        shapes = await shapes_of(services, body, [prompt])
        traces = await trace_plans(services, body, [prompt], length)
        detected = await detections(services, body, detectors, [prompt], length)
    read = (shapes, traces, detected)
    work = generation(services, body, [prompt], params, length, stands, scoring, *read)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    idle = [*how.without_effect(prompt.prompt), *_uncalled(body, how)]
    ignored = note_ignored(services, body, CHAT, idle)
    return Answer(
        record, services, selection, [prompt], work, "chatcmpl", kind, scoring, ignored, body.trace
    )


def _uncalled(body: ChatRequest, how: Templating) -> tuple[str, ...]:
    """Fields about calls of a request that offers no tools."""
    says = body.parallel_tool_calls is not None and how.offer is None
    return ("parallel_tool_calls",) if says else ()


class _Events:
    """The events of a streamed answer: for each choice its role, texts, and how it ended."""

    def __init__(self, answer: Answer, body: ChatRequest) -> None:
        self._answer = answer
        self._body = body
        self._started: set[int] = set()
        self._open = len(answer.generation.choices)
        self._texts = TextEvents(lambda index, text: self._chunk(index, {"content": text}))
        self._thoughts = TextEvents(lambda index, text: self._chunk(index, {REASONING: text}))

    def __call__(self, delta: Delta) -> bytes:
        events = b""
        if delta.index not in self._started:
            said = _choice(delta.index, {"role": "assistant", "content": ""})
            more = {} if self._started else self._listed(delta.index)
            events += frame(self._envelope(said, **more))
            self._started.add(delta.index)
        if delta.text or delta.reasoning or delta.calls or delta.logprobs:
            events += self._said(delta)
        if delta.finish_reason:
            self._open -= 1
            choice = _choice(delta.index, {}, finish_reason=delta.finish_reason) | traced(delta)
            receipt = {} if self._open else self._answer.receipt()
            events += frame(self._envelope(choice, **receipt))
        return events

    def _said(self, delta: Delta) -> bytes:
        brief = not (delta.calls or self._body.logprobs or self._body.continuous_usage)
        if brief and not delta.reasoning:
            return self._texts.event(delta.index, delta.text)
        if brief and not delta.text:
            return self._thoughts.event(delta.index, delta.reasoning)
        logprobs = _logprobs(self._answer, self._body, list(delta.logprobs))
        return frame(self._chunk(delta.index, news(delta), logprobs))

    def _listed(self, index: int) -> dict[str, Any]:
        """What the first event of all says of the prompt."""
        return self._answer.prompt_of(index).listed(self._answer.services.prompts)

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return self._envelope(_choice(index, delta, logprobs))

    def _envelope(self, choice: dict[str, Any], **more: Any) -> dict[str, Any]:
        usage = self._answer.usage_so_far(self._body)
        return self._answer.envelope(choices=[choice], **usage, **more)


def _choice(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(answer: Answer, body: ChatRequest, entries: list[Any]) -> dict[str, Any] | None:
    return chat_logprobs(answer.services.prompts, entries) if body.logprobs else None


def _alternatives(body: ChatRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise BadRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    return None
