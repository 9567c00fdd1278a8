"""POST /v1/score: how likely given answers are. Nothing is generated.

A continuation is to interventions what the answer would be: they act on its rows as they would on
generated ones. Of several the first goes ahead, so that the others find the prompt computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from msgspec.structs import replace

from saccade_kernels.batch import PAGE
from saccade_server.api.access.standing import Standing, standing
from saccade_server.api.answers import Answer, Collected
from saccade_server.api.body.ignored import note_ignored
from saccade_server.api.body.parsing import read_body
from saccade_server.api.body.schemas import ScoreRequest
from saccade_server.api.choice import Choice
from saccade_server.api.errors import BadRequest
from saccade_server.api.generation import Generation
from saccade_server.api.ids import new_id
from saccade_server.api.layers.record import record_of
from saccade_server.api.logprobs import LOWEST
from saccade_server.api.openapi import examples
from saccade_server.api.openapi.document import POSTED, operation
from saccade_server.api.openapi.replies import Scored
from saccade_server.api.prompt_scores import PromptScoring, entries_of
from saccade_server.api.rendering import (
    check_tokens,
    compiled,
    prepare_chat,
    refusing,
)
from saccade_server.api.selection import Selection, select
from saccade_server.api.services import Services
from saccade_server.api.sse import unless_disconnected
from saccade_server.api.stops import StopStrings
from saccade_server.api.templating import Templating, refuse_without_messages, templating
from saccade_server.models.continuations import Continuation, TextPrompt, lead
from saccade_server.requests.continuations import (
    Score,
    check_continuation,
    continuation_request,
)
from saccade_server.requests.prepared import Prepared

Pair = tuple[Prepared, tuple[int, ...]]
"""A prompt, and the tokens of what continues it."""


def score_router(services: Services) -> APIRouter:
    """Make the route."""
    router = APIRouter(tags=["Answers"])

    described = operation(
        Scored, body=ScoreRequest, examples=examples.SCORE, refusals=(*POSTED, 422)
    )

    @router.post("/v1/score", openapi_extra=described)
    async def score(request: Request) -> Response:
        """Tell how likely each continuation of a prompt is, under the interventions it names."""
        body = await read_body(services, request, ScoreRequest)
        work = _prepare(services, body, request)
        answer, pairs = await unless_disconnected(request.receive, work)
        told = await answer.whole(request)
        return answer.json(
            answer.envelope(
                scores=[
                    _score(answer, index, tokens, said)
                    for index, ((_, tokens), said) in enumerate(zip(pairs, told, strict=True))
                ],
                usage=_usage(answer, pairs),
                **answer.receipt(),
            )
        )

    return router


async def _prepare(
    services: Services, body: ScoreRequest, request: Request
) -> tuple[Answer, list[Pair]]:
    _check(services, body)
    selection = select(services, body, request)
    stands = standing(
        services.rates, body.priority, len(body.continuations), services.settings.max_queue_time
    )
    idle: Sequence[str] = ()
    async with stands.deadline.kept(), selection.explained():
        if body.messages is None:
            pairs = await services.in_worker(lambda: _plain(services, body, selection))
        else:
            how = templating(services.prompts, body)
            prompt = await prepare_chat(services, body.messages, selection.interventions, how)
            idle = how.without_effect(prompt.prompt)
            pairs = await services.in_worker(lambda: _said(services, body, prompt, how))
    for at, (prepared, tokens) in enumerate(pairs):
        check_continuation(prepared, tokens, services.engine.info, f"continuations[{at}]")
    ignored = note_ignored(services, body, ignored=idle)
    prompts = [prepared for prepared, _ in pairs]
    stands.take_prompts(sum(prepared.length + len(tokens) for prepared, tokens in pairs))
    work = _generation(services, pairs, stands)
    nothing = PromptScoring()
    answer = Answer(
        record_of(request.scope),
        services,
        selection,
        prompts,
        work,
        "score",
        "score",
        nothing,
        ignored,
    )
    return answer, pairs


def _check(services: Services, body: ScoreRequest) -> None:
    """Check what needs neither the model nor the prompt's content."""
    services.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("Give a prompt or messages, one of them.", param="prompt")
    if body.messages is None:
        refuse_without_messages(body)
    if body.add_special_tokens and not isinstance(body.prompt, str):
        message = "add_special_tokens is for a prompt of text; others have what they need."
        raise BadRequest(message, param="add_special_tokens")
    info = services.engine.info
    if len(body.continuations) > info.max_num_seqs + info.max_waiting:
        message = "This server cannot hold so many continuations at once."
        raise BadRequest(message, param="continuations")
    for at, item in enumerate(body.continuations):
        if isinstance(item, list):
            check_tokens(item, info.vocab_size, f"continuations[{at}]")


def _plain(services: Services, body: ScoreRequest, selection: Selection) -> list[Pair]:
    """Continuations of a plain prompt, each with its prompt: nearly always the same one."""
    prompts, given = services.prompts, body.prompt
    special = body.add_special_tokens is not False
    continued: list[Continuation] = []
    with refusing("prompt"):
        if isinstance(given, list):
            check_tokens(given, services.engine.info.vocab_size, "prompt")
            shared = prompts.completion(given)
        else:
            text = TextPrompt.of(prompts, given or "", special)
            shared = text.prompt
    for at, item in enumerate(body.continuations):
        with refusing(f"continuations[{at}]"):
            if isinstance(item, str):
                own = Continuation(tuple(prompts.behind(item, typed=False)))
                continued.append(own if isinstance(given, list) else text.continued(item))
            else:
                spaced = None if isinstance(given, list) else text.spaced
                continued.append(Continuation(tuple(item), spaced))
    everyone = compiled(services, shared, selection.interventions, "prompt")
    return [
        (
            everyone
            if item.prompt is None
            else compiled(services, item.prompt, selection.interventions, "prompt"),
            item.tokens,
        )
        for item in continued
    ]


def _said(services: Services, body: ScoreRequest, prompt: Prepared, how: Templating) -> list[Pair]:
    """Continuations of a conversation: what an assistant might say."""
    texts = any(isinstance(item, str) for item in body.continuations)
    begins = texts and how.add_generation_prompt
    space = lead(services.prompts, how.variables) if begins else ""
    pairs: list[Pair] = []
    for at, item in enumerate(body.continuations):
        if isinstance(item, list):
            pairs.append((prompt, tuple(item)))
            continue
        with refusing(f"continuations[{at}]"):
            own = item if item[0].isspace() else space + item
            pairs.append((prompt, tuple(services.prompts.behind(own, typed=True))))
    return pairs


def _generation(services: Services, pairs: Sequence[Pair], stands: Standing) -> Generation:
    """One sequence for each continuation."""
    name = new_id()
    choices = []
    for index, (prepared, tokens) in enumerate(pairs):
        request = stands.of(continuation_request(prepared, tokens))
        methods = tuple(item.method_id() for item in prepared.interventions)
        choices.append(
            Choice(
                index,
                replace(request, request_id=f"{name}-{index}"),
                Silent(),
                StopStrings(()),
                frozenset(),
                methods,
            )
        )
    plan = pairs[0][0].plan
    shares = pairs[0][0].length > PAGE and not (plan is not None and plan.needs.whole_prompt)
    leads = shares and len(pairs) > 1
    return Generation(
        services.engine, services.lifecycle, choices, stands, at_once=False, leads=leads
    )


class Silent:
    """A decoder of tokens whose text nobody reads."""

    def push(self, token: int) -> str:
        """Nothing."""
        return ""

    def flush(self) -> str:
        """Nothing."""
        return ""


def _score(answer: Answer, index: int, tokens: tuple[int, ...], said: Collected) -> dict[str, Any]:
    names = answer.services.prompts
    methods = [item.method_id() for item in answer.selection.interventions]
    entries = entries_of(answer.generation.choices[index].scores, methods)
    found = Score.of(entries, said.logprobs)
    logprobs = [max(value, LOWEST) for value in found.logprobs]
    return {
        "index": index,
        "logprob": sum(logprobs),
        "is_greedy": found.is_greedy,
        "token_count": len(tokens),
        "tokens": [names.token_text(token)[0] for token in tokens],
        "token_ids": list(tokens),
        "token_logprobs": logprobs,
    }


def _usage(answer: Answer, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Token counts: the prompt once for each continuation, and how much of that was shared."""
    total = sum(prepared.length + len(tokens) for prepared, tokens in pairs)
    cached = sum(run.cached_tokens for run in answer.generation.runs)
    return {
        "prompt_tokens": total,
        "completion_tokens": 0,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
