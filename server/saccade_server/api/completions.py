"""POST /v1/completions: plain prompts, as text or as tokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from saccade_server.api.access.standing import standing
from saccade_server.api.answers import Answer, Collected, traced
from saccade_server.api.body.foreign import COMPLETION
from saccade_server.api.body.ignored import note_ignored
from saccade_server.api.body.parsing import read_body
from saccade_server.api.body.schemas import CompletionRequest
from saccade_server.api.body.unsupported import refuse_unsupported
from saccade_server.api.choice import Delta
from saccade_server.api.chunks import TextEvents
from saccade_server.api.detections import detections
from saccade_server.api.errors import BadRequest
from saccade_server.api.layers.record import record_of
from saccade_server.api.logprobs import completion_logprobs
from saccade_server.api.openapi import examples
from saccade_server.api.openapi.document import POSTED, operation
from saccade_server.api.openapi.replies import TextChunk, TextCompletion
from saccade_server.api.prompt_scores import PromptScores, PromptScoring
from saccade_server.api.rendering import prepare_completion
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
from saccade_server.requests.detectors import parse_detectors

DEFAULT_MAX_TOKENS = 16
"""OpenAI's and vLLM's default on this endpoint."""


def completions_router(services: Services) -> APIRouter:
    """Make the route."""
    router = APIRouter(tags=["Answers"])

    described = operation(
        TextCompletion,
        event=TextChunk,
        body=CompletionRequest,
        examples=examples.COMPLETION,
        refusals=POSTED,
    )

    @router.post("/v1/completions", openapi_extra=described)
    async def completions(request: Request) -> Response:
        """Continue one or several prompts, under the interventions the request names."""
        body = await read_body(services, request, CompletionRequest)
        answer = await unless_disconnected(request.receive, _prepare(services, body, request))
        if body.stream:
            return answer.stream(_Events(answer, body), body)
        choices = await answer.whole(request)
        return await answer.written(
            lambda: answer.envelope(
                choices=[
                    _choice(answer, body, index, said, answer.prompt_of(index))
                    for index, said in enumerate(choices)
                ],
                usage=answer.usage(),
                **answer.receipt(),
            )
        )

    return router


async def _prepare(services: Services, body: CompletionRequest, request: Request) -> Answer:
    record = record_of(request.scope)
    record.stream = bool(body.stream)
    refuse_unsupported(body.model_extra or {}, COMPLETION, services.prompts.knows_thinking)
    asked = body.prompts
    check_request(services, body, len(asked))
    scoring = PromptScoring.of(body)
    if body.add_special_tokens and any(isinstance(prompt, list) for prompt in asked):
        message = "add_special_tokens is for texts; a prompt of tokens is taken as it is."
        raise BadRequest(message, param="add_special_tokens")
    params = sampling_params(services, body, body.logprobs)
    selection = select(services, body, request)
    several = isinstance(body.prompt, list) and not isinstance(body.prompt[0], int)
    detectors = parse_detectors(body.detectors)
    sequences = len(asked) * (body.n or 1)
    stands = standing(services.rates, body.priority, sequences, services.settings.max_queue_time)
    async with stands.deadline.kept(), selection.explained():
        prompts = [
            await prepare_completion(
                services,
                prompt,
                selection.interventions,
                f"prompt[{at}]" if several else "prompt",
                body.add_special_tokens is not False,
            )
            for at, prompt in enumerate(asked)
        ]
        length, _ = body.length
        if length is None:
            shortest = min(services.room - item.length for item in prompts)
            length = min(max(DEFAULT_MAX_TOKENS, body.min_tokens or 0), shortest)
        shapes = await shapes_of(services, body, prompts)
        traces = await trace_plans(services, body, prompts, length)
        detected = await detections(services, body, detectors, prompts, length)
    read = (shapes, traces, detected)
    work = generation(services, body, prompts, params, length, stands, scoring, *read)
    ignored = note_ignored(services, body, COMPLETION)
    kind, trace = "text_completion", body.trace
    return Answer(record, services, selection, prompts, work, "cmpl", kind, scoring, ignored, trace)


class _Events:
    """The events of a streamed answer: one for each delta, a choice's first with its prompt."""

    def __init__(self, answer: Answer, body: CompletionRequest) -> None:
        self._answer = answer
        self._body = body
        self._open = len(answer.generation.choices)
        self._texts = TextEvents(lambda index, text: self._chunk(Delta(index, text)))
        self._begun: set[int] = set()

    def __call__(self, delta: Delta) -> bytes:
        if self._answer.scoring.shows and delta.index not in self._begun:
            self._begun.add(delta.index)
            return frame(self._chunk(delta, self._answer.prompt_of(delta.index)))
        plain = self._body.logprobs is None and not self._body.continuous_usage
        if plain and delta.finish_reason is None:
            return self._texts.event(delta.index, delta.text)
        return frame(self._chunk(delta))

    def _chunk(self, delta: Delta, prompt: PromptScores | None = None) -> dict[str, Any]:
        answer = self._answer
        self._open -= delta.finish_reason is not None
        receipt = answer.receipt() if delta.finish_reason and not self._open else {}
        choices = [_choice(answer, self._body, delta.index, delta, prompt)]
        return answer.envelope(choices=choices, **answer.usage_so_far(self._body), **receipt)


def _choice(
    answer: Answer,
    body: CompletionRequest,
    index: int,
    said: Delta | Collected,
    prompt: PromptScores | None,
) -> dict[str, Any]:
    """What is new about a choice; behind its ``prompt``, if that is new too."""
    names, logprobs = answer.services.prompts, None
    if body.logprobs is not None:
        behind = len(answer.echo_of(index))
        offsets = [behind + offset for offset in said.offsets]
        logprobs = completion_logprobs(names, said.logprobs, offsets)
    if prompt is not None and logprobs is not None:
        before = prompt.echoed(names)
        logprobs = {field: before.get(field, []) + told for field, told in logprobs.items()}
    return {
        "index": index,
        "text": said.text if prompt is None else prompt.text + said.text,
        "logprobs": logprobs,
        "finish_reason": said.finish_reason,
        **({} if prompt is None else prompt.listed(names)),
        **traced(said),
    }
