"""POST /tokenize and /detokenize, as vLLM has them, for tools that lack the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from saccade_server.api.body.foreign import TOKENIZE
from saccade_server.api.body.ignored import note_ignored
from saccade_server.api.body.parsing import read_body
from saccade_server.api.body.schemas import DetokenizeRequest, TokenizeRequest
from saccade_server.api.body.unsupported import refuse_unsupported
from saccade_server.api.deadline import current_deadline
from saccade_server.api.errors import BadRequest
from saccade_server.api.openapi import examples
from saccade_server.api.openapi.document import POSTED, operation
from saccade_server.api.openapi.replies import Detokenized, Tokenized
from saccade_server.api.rendering import check_tokens, refusing, rendering
from saccade_server.api.services import Services
from saccade_server.api.sse import unless_disconnected
from saccade_server.api.templating import refuse_without_messages, templating


def tokenize_router(services: Services) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["Tokens"])
    to_tokens = operation(
        Tokenized, body=TokenizeRequest, examples=examples.TOKENIZE, refusals=(*POSTED, 422)
    )
    to_text = operation(
        Detokenized, body=DetokenizeRequest, examples=examples.DETOKENIZE, refusals=POSTED
    )

    @router.post("/tokenize", openapi_extra=to_tokens, response_model=None)
    async def tokenize(request: Request, response: Response) -> dict[str, Any]:
        """Tokens of a prompt or of a conversation, its images expanded. Nothing is generated."""
        body = await read_body(services, request, TokenizeRequest)
        services.check_model(body.model)
        _refuse_other_prompts(services, body)
        async with current_deadline.get().kept():
            work = _tokens(services, body, response)
            tokens = await unless_disconnected(request.receive, work)
        names = list(map(services.prompts.token_name, tokens)) if body.return_token_strs else None
        return {
            "count": len(tokens),
            "max_model_len": services.room,
            "tokens": list(tokens),
            "token_strs": names,
        }

    @router.post("/detokenize", openapi_extra=to_text, response_model=None)
    async def detokenize(request: Request, response: Response) -> dict[str, Any]:
        """The text of tokens, control tokens included."""
        body = await read_body(services, request, DetokenizeRequest)
        services.check_model(body.model)
        response.headers.update(note_ignored(services, body))
        check_tokens(body.tokens, services.engine.info.vocab_size, "tokens")

        def work() -> str:
            with refusing("tokens"):
                return services.prompts.text(body.tokens)

        async with current_deadline.get().kept():
            return {"prompt": await services.in_worker(work)}

    return router


async def _tokens(services: Services, body: TokenizeRequest, response: Response) -> Sequence[int]:
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("Give a prompt or messages, one of them.", param="prompt")
    if body.messages is not None:
        if body.add_special_tokens:
            message = "The chat template has the special tokens of a conversation."
            raise BadRequest(message, param="add_special_tokens")
        how = templating(services.prompts, body)
        render, _ = await rendering(services, body.messages, how)
        prompt = await services.in_worker(render)
        idle = how.without_effect(prompt)
        response.headers.update(note_ignored(services, body, TOKENIZE, idle))
        return prompt.tokens
    refuse_without_messages(body)
    response.headers.update(note_ignored(services, body, TOKENIZE))
    special = body.add_special_tokens is not False
    work = partial(services.prompts.tokens, body.prompt or "", add_special_tokens=special)
    return await services.in_worker(work)


def _refuse_other_prompts(services: Services, body: TokenizeRequest) -> None:
    """Refuse what asks for a prompt that is not made; the rest of a chat has no say in it."""
    asked = {name: value for name, value in (body.model_extra or {}).items() if name in TOKENIZE}
    refuse_unsupported(asked, TOKENIZE, services.prompts.knows_thinking)
