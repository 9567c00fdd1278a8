"""The OpenAPI document: FastAPI's own, plus the bodies that this package parses itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from saccade_server.api.schemas import ChatRequest, CompletionRequest, ValidateRequest

BODIES: tuple[type[BaseModel], ...] = (ChatRequest, CompletionRequest, ValidateRequest)
REFERENCE = "#/components/schemas/{model}"


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """What a route says about its body."""
    schema = {"$ref": REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def document(app: FastAPI) -> dict[str, Any]:
    """Build the document once."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        bodies = [(model, "validation") for model in BODIES]
        _, definitions = models_json_schema(bodies, ref_template=REFERENCE)  # type: ignore[arg-type]
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        components.update(definitions["$defs"])
        app.openapi_schema = schema
    return app.openapi_schema
