"""Fields that are accepted and change nothing, with the reason.

The OpenAPI document says so at each of them, every answer names in a header those that a request
has, and a test holds that nothing else is without effect. Fields that nobody knows are named in
the same header.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from saccade_server.api.layers.observe import error_log
from saccade_server.logs.context import request_id

IGNORED_HEADER = "x-saccade-ignored-fields"
MOST_NAMED = 16
LONGEST_PATH = 80
MOST_LOGGED = 256
"""Distinct names that are logged in the life of a process."""

NO_EFFECT: dict[str, str] = {
    "user": "the server keeps nothing about users",
    "safety_identifier": "the server keeps nothing about users",
    "metadata": "answers are not stored, so there is nothing to attach it to",
    "service_tier": "there is one tier",
    "prompt_cache_key": "prefixes are shared by their content alone",
    "prompt_cache_retention": "prefixes stay cached as long as there is room",
    "image_url.detail": "images always have the size that the model's own processor makes",
    "stream_options.include_obfuscation": "answers are never padded",
    "json_schema.description": "the model is told what the messages say, and no more",
    "structured_outputs.disable_fallback": "there is one implementation",
    "guided_decoding_backend": "there is one implementation",
}
"""Field, or the object it is in and its name -> why any value of it changes nothing."""


def describe(name: str) -> str:
    """What the OpenAPI document says of a field in :data:`NO_EFFECT`."""
    return f"Accepted without effect: {NO_EFFECT[name]}."


def ignored_fields(
    body: BaseModel, known: Container[str] = (), reads: frozenset[str] = frozenset()
) -> list[str]:
    """Paths of the fields of a request that change nothing, in order; null asks for nothing.

    Items of lists share one path, as in ``messages[].id``.

    Args:
        body: the request.
        known: names of fields that are not the schema's and yet looked at.
        reads: which of a message's ``name`` and ``reasoning_content`` the chat template writes
            into prompts.
    """
    found: dict[str, None] = {}
    for path, name, value in _fields(body, "", reads):
        if value is not None and (path or name not in known):
            found.setdefault(f"{path}.{name}" if path else name)
    return list(found)


def header(names: Iterable[str]) -> str:
    """Names as one header value: ASCII without commas and spaces, bounded."""
    listed = list(names)
    shown = [_safe(name) for name in listed[:MOST_NAMED]]
    more = len(listed) - len(shown)
    return ", ".join([*shown, f"and-{more}-more"] if more > 0 else shown)


class IgnoredLog:
    """Logs ignored names, each once, and :data:`MOST_LOGGED` of them at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: set[str] = set()

    def note(self, names: Iterable[str]) -> None:
        """Log the names that were not logged before, in one line."""
        with self._lock:
            room = MOST_LOGGED - len(self._seen)
            new = [name for name in map(_logged, names) if name not in self._seen][:room]
            self._seen.update(new)
        if new:
            error_log.warning(
                "request %s: fields without effect: %s (each is logged once)",
                request_id.get(),
                header(new),
            )


def _fields(body: BaseModel, path: str, reads: frozenset[str]) -> Iterator[tuple[str, str, Any]]:
    """Every field without effect in a model and the models in it: path, name, value."""
    for name in body.model_extra or {}:
        yield path, name, (body.model_extra or {})[name]
    given, values = body.model_fields_set, body.__dict__
    for name in type(body).model_fields:
        if name not in given:
            continue
        value = values[name]
        if _without_effect(body, path, name, reads):
            yield path, name, value
            continue
        here = f"{path}.{name}" if path else name
        if isinstance(value, BaseModel):
            yield from _fields(value, here, reads)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for item in value:
                yield from _fields(item, f"{here}[]", reads)


def _without_effect(body: BaseModel, path: str, name: str, reads: frozenset[str]) -> bool:
    last = path.rpartition(".")[2]
    if (f"{last}.{name}" if last else name) in NO_EFFECT:
        return True
    role = body.__dict__.get("role")
    if role is None or name not in OWN_FIELDS:
        return False
    owner = OWN_FIELDS[name]
    if role == "tool" and name == "name":  # the name of its result
        return False
    read_as = TEMPLATE_FIELDS.get(name)
    unread = read_as is not None and read_as not in reads
    return unread or (owner is not None and role != owner)


OWN_FIELDS: Mapping[str, str | None] = {
    "name": None,
    "refusal": "assistant",
    "reasoning": "assistant",
    "reasoning_content": "assistant",
    "tool_call_id": "tool",
}
"""Field of a message -> the role that it belongs to; None: all. On others it changes nothing."""

TEMPLATE_FIELDS: Mapping[str, str] = {
    "name": "name",
    "reasoning": "reasoning_content",
    "reasoning_content": "reasoning_content",
}
"""Fields that change the prompt only where the chat template reads them, and as what."""


def _logged(name: str) -> str:
    """A name for the log: what is no name of a field may be a text that went astray."""
    return name if FIELD.fullmatch(name) else ODD


FIELD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,80}")
ODD = "(an-odd-name)"


def _safe(name: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_.-[]") else "?" for c in name)
    return kept[:LONGEST_PATH] or "?"
