"""The OpenAPI document: FastAPI's own paths, with what each operation really takes and answers.

An operation describes itself where its route is declared, with :func:`operation`. What the layers
around all routes may answer is added here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from saccade_server.api.body import schemas
from saccade_server.api.layers.admission import needs_place, open_routes
from saccade_server.api.layers.auth import is_open_route
from saccade_server.api.layers.hosts import checks_host
from saccade_server.api.openapi import catalog_replies, replies, trace_replies
from saccade_server.api.settings import ApiSettings

REFERENCE = "#/components/schemas/{model}"
JSON, EVENTS = "application/json", "text/event-stream"

REASONS: Mapping[int, str] = {
    400: "Something in the request is wrong; `param` says what.",
    401: "No key, or one that is not known.",
    403: "The key may not do this.",
    404: "What the request names is not here.",
    408: "The body did not come in time.",
    409: "What the server has does not allow it.",
    413: "More than the server takes.",
    415: "The content type or encoding is not read.",
    421: "This server does not answer to that Host.",
    422: "What the request points to could not be fetched.",
    429: "The key has had enough for now; Retry-After says for how long.",
    431: "Too many headers, or too long ones.",
    500: "The server failed on this request; repeating it helps if there is a Retry-After.",
    503: "Not begun; try again later: too busy, shutting down, or out of service.",
    504: "The answer took too long.",
}
AROUND = (431, 500)
"""What the layers around every route answer."""
POSTED = (400, 404, 408, 413, 415, 504)
"""What a posted JSON body may meet."""

BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
}

KEY, ADMIN_KEY = "apiKey", "adminKey"
SCHEMES = {
    KEY: {
        "type": "http",
        "scheme": "bearer",
        "description": "One of the server's keys; an admin key will do, too.",
    },
    ADMIN_KEY: {
        "type": "http",
        "scheme": "bearer",
        "description": "A key that may change what the server has.",
    },
}


def operation(
    reply: type[BaseModel] | None = None,
    *,
    statuses: Iterable[int] = (200,),
    body: type[BaseModel] | None = None,
    examples: Mapping[str, Any] | None = None,
    event: type[BaseModel] | None = None,
    refusals: Iterable[int] = (),
    admin: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """What a route says about itself, for ``openapi_extra``.

    Args:
        reply: the JSON that it answers; None: nothing, or what ``more`` says.
        statuses: of that answer.
        body: the JSON that it takes, with ``examples`` by name.
        event: the data of an event, if it may stream.
        refusals: statuses of the errors that it answers, besides those of the layers around it.
        admin: only an admin key opens it.
        more: fields of the operation as OpenAPI has them.
    """
    content = {JSON: _schema(reply)} if reply else {}
    if event:
        content[EVENTS] = _schema(event)
    answered = {"description": "Success."} | ({"content": content} if content else {})
    answers = {str(status): answered for status in statuses}
    found: dict[str, Any] = {"responses": answers | {str(s): _refusal(s) for s in refusals}}
    if body:
        given = _schema(body) | ({"examples": dict(examples)} if examples else {})
        found["requestBody"] = {"required": True, "content": {JSON: given}}
    if admin:
        found["security"] = [{ADMIN_KEY: []}]
    for name, value in more.items():
        found[name] = {**found[name], **value} if name in found else value
    return found


def document(app: FastAPI, settings: ApiSettings) -> dict[str, Any]:
    """Build the document once."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        components = schema.setdefault("components", {})
        components["schemas"] = _definitions()
        components["securitySchemes"] = SCHEMES
        for path, found in _operations(schema):
            _complete(found, path, settings)
        app.openapi_schema = schema
    return app.openapi_schema


def _definitions() -> dict[str, Any]:
    """The schema of every model of a body or an answer."""
    models = [
        (model, "validation")
        for module in (schemas, replies, trace_replies, catalog_replies)
        for model in vars(module).values()
        if isinstance(model, type) and issubclass(model, BaseModel) and model is not BaseModel
    ]
    _, definitions = models_json_schema(models, ref_template=REFERENCE)  # type: ignore[arg-type]
    found: dict[str, Any] = _bounded(definitions["$defs"])
    return found


def _bounded(value: Any) -> Any:
    """Bounds under JSON Schema's names: behind a validator pydantic leaves its own."""
    if isinstance(value, list):
        return [_bounded(item) for item in value]
    if not isinstance(value, dict):
        return value
    number = value.get("type") in ("integer", "number")
    return {BOUNDS.get(name, name) if number else name: _bounded(v) for name, v in value.items()}


def _operations(schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for found in item.values():
            yield path, found


def _complete(found: dict[str, Any], path: str, settings: ApiSettings) -> None:
    """Add what the layers around the route do, and take out what FastAPI only supposes."""
    answers = found["responses"]
    supposed = answers.get("422", {}).get("content", {}).get(JSON, {})
    if "HTTPValidationError" in str(supposed):
        del answers["422"]
    around: tuple[int, ...] = (*AROUND, 503) if needs_place(path) else AROUND
    if is_open_route(path, settings):
        found["security"] = []
    else:
        if settings.needs_key:
            found.setdefault("security", [{KEY: []}, {ADMIN_KEY: []}])
        if "security" in found:
            around = (401, *around)
    if settings.keys and needs_place(path) and not is_open_route(path, settings):
        around = (429, *around)
    if checks_host(settings) and path not in open_routes(settings):
        around = (421, *around)
    for status in around:
        answers.setdefault(str(status), _refusal(status))
    found["responses"] = dict(sorted(answers.items()))


def _refusal(status: int) -> dict[str, Any]:
    return {"description": REASONS[status], "content": {JSON: _schema(replies.ErrorBody)}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": REFERENCE.format(model=model.__name__)}}
