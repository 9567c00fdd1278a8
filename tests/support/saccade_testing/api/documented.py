"""Holds every answer of an application against its OpenAPI document."""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jsonschema  # type: ignore[import-untyped]
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

EVENT_STREAM = "text/event-stream"
ERROR = {"$ref": "#/components/schemas/ErrorBody"}


class Document:
    """An OpenAPI document that answers are held against; no field may be there that it lacks."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document: dict[str, Any] = json.loads(json.dumps(document))
        for schema in self.document["components"]["schemas"].values():
            if schema.get("type") == "object" and "properties" in schema:
                schema.setdefault("additionalProperties", False)

    def problems(
        self, method: str, path: str, status: int, media: str, body: bytes
    ) -> Iterator[str]:
        """What it does not say of an answer, in sentences."""
        what = f"{method} {path[:80]} -> {status} {media}"
        found = self.operation(method, path)
        if found is None:
            if status >= 400 and body:
                yield from self._differences(what, ERROR, json.loads(body))
            return
        answer = found[1]["responses"].get(str(status))
        if answer is None:
            yield f"{what}: this status is not documented"
            return
        content = answer.get("content", {})
        if not content and not body:
            return
        if media not in content:
            yield f"{what}: documented are {list(content)}"
        elif media == EVENT_STREAM:
            yield from self._in_events(what, content[media]["schema"], body.decode())
        elif media == "application/json":
            yield from self._differences(what, content[media]["schema"], json.loads(body))

    def operation(self, method: str, path: str) -> tuple[str, dict[str, Any]] | None:
        """The path as the document has it, and what it says of the method there."""
        exact = [t for t in self.document["paths"] if t == path]
        like = [t for t in self.document["paths"] if re.fullmatch(_pattern(t), path)]
        for template in exact + like:
            operation = self.document["paths"][template].get(method.lower())
            if operation is not None:
                return template, operation
        return None

    def _in_events(self, what: str, schema: dict[str, Any], text: str) -> Iterator[str]:
        for block in text.split("\n\n"):
            data = block.removeprefix("data: ")
            if data != block and data != "[DONE]":
                event = json.loads(data)
                yield from self._differences(what, ERROR if "error" in event else schema, event)

    def _differences(self, what: str, schema: dict[str, Any], value: Any) -> Iterator[str]:
        whole = {"components": self.document["components"], **schema}
        for error in jsonschema.Draft202012Validator(whole).iter_errors(value):
            yield f"{what}: {error.json_path}: {error.message[:300]}"


class Documented:
    """An application, and what it answered that its document does not say.

    ``answered`` has every (method, path of the document, status); ``problems`` has sentences.
    """

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.answered: set[tuple[str, str, int]] = set()
        self.problems: list[str] = []

    @cached_property
    def document(self) -> Document:
        return Document(self.app.openapi())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["state"].pop("shortcut", None)  # every event is to be seen here
        started: dict[str, Any] = {}
        body = bytearray()

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                # Before the end is sent: a test may look as soon as its client has it.
                if not message.get("more_body", False) and scope["path"] != "/openapi.json":
                    self._check(scope["method"], scope["path"], started, bytes(body))
            await send(message)

        await self.app(scope, receive, watched_send)

    def _check(self, method: str, path: str, started: dict[str, Any], body: bytes) -> None:
        headers = {name.decode().lower(): value.decode() for name, value in started["headers"]}
        status = started["status"]
        media = headers.get("content-type", "").partition(";")[0]
        found = self.document.operation(method, path)
        if found is not None:
            self.answered.add((method, found[0], status))
        self.problems += self.document.problems(method, path, status, media, body)


def _pattern(template: str) -> str:
    return "".join(
        "[^/]+" if piece.startswith("{") else re.escape(piece)
        for piece in re.split(r"(\{[^}]*\})", template)
    )
