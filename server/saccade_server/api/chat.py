"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers

from saccade_server.api.answers import Answer
from saccade_server.api.body.foreign import CHAT
from saccade_server.api.body.ignored import note_ignored
from saccade_server.api.body.parsing import read_body
from saccade_server.api.body.schemas import ChatRequest
from saccade_server.api.body.unsupported import refuse_unsupported
from saccade_server.api.deadline import Deadline
from saccade_server.api.errors import BadRequest
from saccade_server.api.logprobs import chat_logprobs
from saccade_server.api.openapi import examples
from saccade_server.api.openapi.document import POSTED, operation
from saccade_server.api.openapi.replies import ChatChunk, ChatCompletion
from saccade_server.api.rendering import prepare_chat
from saccade_server.api.sampling import check_request, generation, sampling_params
from saccade_server.api.selection import select
from saccade_server.api.services import Services
from saccade_server.api.sse import unless_disconnected
from saccade_server.api.templating import templating


def chat_router(services: Services) -> APIRouter:
    """Make the route."""
    router = APIRouter(tags=["Answers"])

    described = operation(
        ChatCompletion,
        event=ChatChunk,
        body=ChatRequest,
        examples=examples.CHAT,
        refusals=(*POSTED, 422, 504),
    )

    @router.post("/v1/chat/completions", openapi_extra=described)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation, under the interventions the request names."""
        body = await read_body(services, request, ChatRequest)
        answer = await unless_disconnected(
            request.receive, _prepare(services, body, request.headers)
        )
        if body.stream:
            return answer.stream(_chunks(answer, body))
        choices = await answer.whole(request)
        return answer.json(
            answer.envelope(
                choices=[
                    {
                        "index": index,
                        "message": {"role": "assistant", "content": choice.text, "refusal": None},
                        "logprobs": _logprobs(answer, body, choice.logprobs),
                        "finish_reason": choice.finish_reason,
                    }
                    for index, choice in enumerate(choices)
                ],
                usage=answer.usage(),
                **answer.receipt(),
            )
        )

    return router


async def _prepare(services: Services, body: ChatRequest, headers: Headers) -> Answer:
    refuse_unsupported(body.model_extra or {}, CHAT, services.prompts.knows_thinking)
    check_request(services, body)
    how = templating(services.prompts, body)
    params = sampling_params(services, body, _alternatives(body))
    selection = select(services, body, headers)
    deadline = Deadline(services.settings.request_timeout)
    async with deadline.kept():
        prompt = await prepare_chat(services, body.messages, selection.interventions, how)
    work = generation(services, body, [prompt], params, body.length[0], deadline)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    ignored = note_ignored(services, body, CHAT, how.without_effect(prompt.prompt))
    return Answer(services, selection, [prompt], work, "chatcmpl", kind, ignored)


async def _chunks(answer: Answer, body: ChatRequest) -> AsyncGenerator[dict[str, Any], None]:
    started: set[int] = set()
    async with answer.generation as work:
        async for delta in work.deltas():
            if delta.index not in started:
                started.add(delta.index)
                role = _choice(delta.index, {"role": "assistant", "content": ""})
                yield answer.envelope(choices=[role], **answer.usage_so_far(body))
            if delta.text or delta.logprobs:
                logprobs = _logprobs(answer, body, list(delta.logprobs))
                choice = _choice(delta.index, {"content": delta.text}, logprobs)
                yield answer.envelope(choices=[choice], **answer.usage_so_far(body))
            if delta.finish_reason:
                choice = _choice(delta.index, {}, finish_reason=delta.finish_reason)
                last = all(choice.done for choice in work.choices)
                receipt = answer.receipt() if last else {}
                yield answer.envelope(choices=[choice], **answer.usage_so_far(body), **receipt)
    answer.book()
    closing = answer.closing(body.include_usage)
    if closing:
        yield closing


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
