"""What can be asked for, in which words, and a rehearsal without generating anything."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from saccade_interventions.errors import InterventionError
from saccade_interventions.parsing import FIELD
from saccade_server.api.body.ignored import note_ignored
from saccade_server.api.body.parsing import read_body
from saccade_server.api.body.schemas import ValidateRequest
from saccade_server.api.deadline import current_deadline
from saccade_server.api.errors import BadRequest, NotFound, bounded
from saccade_server.api.openapi import examples
from saccade_server.api.openapi.catalog_replies import Method, MethodList, Validation
from saccade_server.api.openapi.document import POSTED, operation
from saccade_server.api.rendering import prepare_chat, prepare_completion
from saccade_server.api.selection import PROFILE_HEADER, select
from saccade_server.api.services import Services
from saccade_server.api.sse import unless_disconnected
from saccade_server.api.templating import refuse_without_messages, templating
from saccade_server.requests.limits import check_group
from saccade_server.requests.prepared import Prepared
from saccade_server.requests.receipts import acts, fingerprint, layers, sites
from saccade_server.requests.rehearsal import ONE_TOKEN, depends_on_prompt


def interventions_router(services: Services) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["Interventions"])
    registry = services.registry

    @router.get("/v1/interventions", openapi_extra=operation(MethodList), response_model=None)
    async def list_interventions() -> dict[str, Any]:
        """List the methods, what each excludes, and whether the served model supports it."""
        return {"object": "list", "data": await services.in_worker(services.listing)}

    one = operation(Method, refusals=(404,))

    @router.get("/v1/interventions/{method}", openapi_extra=one, response_model=None)
    async def describe_intervention(method: str) -> dict[str, Any]:
        """Describe one method: its facts and the JSON Schema of its entry."""
        try:
            return registry.describe(method)
        except InterventionError as error:
            message = bounded(str(error))
            raise NotFound(message, code="intervention_unknown_method", param="method") from None

    rehearsal = operation(
        Validation,
        body=ValidateRequest,
        examples=examples.VALIDATION,
        refusals=(*POSTED, 422),
    )

    @router.post("/v1/interventions/validate", openapi_extra=rehearsal, response_model=None)
    async def validate_interventions(request: Request, response: Response) -> dict[str, Any]:
        """Check interventions as a real request would, without generating.

        They may be those of a profile, or of the default profile. Without messages or
        prompt_tokens, what any prompt would meet is checked, conflicts too; ``depends_on_prompt``
        says what is still open. An error is the same that the real request would get.
        """
        body = await read_body(services, request, ValidateRequest)
        named = "interventions" in body.model_fields_set or _names_profile(body, request)
        if not named and services.profiles.default is None:
            raise BadRequest("interventions is required", code="missing_field", param=FIELD)
        selection = select(services, body, request)
        interventions = selection.interventions
        prepared: Prepared | None = None
        if body.messages is not None and body.prompt_tokens is not None:
            raise BadRequest("Give messages or prompt_tokens, not both.", param="prompt_tokens")
        deadline = current_deadline.get()
        async with deadline.kept(), selection.explained():
            if body.messages is not None:
                how = templating(services.prompts, body)
                work = prepare_chat(services, body.messages, interventions, how)
                prepared = await unless_disconnected(request.receive, work)
                idle = how.without_effect(prepared.prompt)
                response.headers.update(note_ignored(services, body, ignored=idle))
            elif body.prompt_tokens is not None:
                tokens = body.prompt_tokens
                work = prepare_completion(services, tokens, interventions, "prompt_tokens")
                prepared = await unless_disconnected(request.receive, work)
            else:
                check = partial(services.rehearse, interventions)
                resolved = await services.in_worker(check)
        if prepared is not None:
            resolved = prepared.interventions
            check_group(prepared.request("", ONE_TOKEN), services.engine.info)
        if body.messages is None:
            refuse_without_messages(body)
        return {
            "object": "intervention.validation",
            "valid": True,
            "checked": ["parameters", "model", *(["prompt"] if prepared else [])],
            "depends_on_prompt": [] if prepared else depends_on_prompt(interventions),
            "prompt_tokens": prepared.length if prepared else None,
            "profile": selection.profile,
            "fingerprint": fingerprint(interventions),
            "interventions": [
                {
                    "index": index,
                    "method": item.method_id(),
                    "version": item.current_version,
                    "fingerprint": item.fingerprint(),
                    "entry": resolved[index].normalised(),
                    **(_where(index, prepared) if prepared else {}),
                }
                for index, item in enumerate(interventions)
            ],
        }

    return router


def _names_profile(body: ValidateRequest, request: Request) -> bool:
    """True if the request has another place that may name its interventions."""
    alias = "+" in (body.model or "")
    return alias or bool(
        body.intervention_profile or body.vllm_xargs or request.headers.get(PROFILE_HEADER)
    )


def _where(index: int, prepared: Prepared) -> dict[str, Any]:
    plans = [prepared.plan]
    return {
        "layers": layers(index, plans),
        "heads": len(sites(index, plans)),
        "status": "ready" if acts(index, plans) else "neutral",
    }
