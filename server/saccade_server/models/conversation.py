"""What a conversation is made of, before a template sees it.

A tool call and its result reach a template that knows tools as it expects them. For any other
template they become text turns (:func:`as_text_turns`):

    assistant   its own text, then one line a call:  ``Call now: {"zone": "UTC"}``
    user        one line a result:                   ``Result of now: 12:00``

Results stand at the beginning of the user turn that follows, or make one, because many templates
want users and assistants to take turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL.Image import Image

from saccade_server.models.views import Pixels

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""Role of a message -> the role that templates know it by."""

SHORT_ID = 9

Picture = Image | Pixels
"""A picture, or what the model's preprocessing made of one."""
Part = str | Picture


class PromptError(ValueError):
    """The prompt cannot be built; the message may be shown to the client."""


@dataclass(frozen=True)
class ToolCall:
    """A function that an assistant called; arguments that are no JSON object are its own text."""

    name: str
    arguments: Mapping[str, Any] | str
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One message of a conversation: texts and images in order, and what else templates read.

    ``calls`` are an assistant's; ``call_id`` is the call whose result a tool's message holds.
    """

    role: str
    parts: tuple[Part, ...]
    name: str | None = None
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None

    @property
    def images(self) -> list[Picture]:
        """The images, in order."""
        return [part for part in self.parts if not isinstance(part, str)]

    @property
    def has_text(self) -> bool:
        """True if some part is text that is not empty."""
        return any(isinstance(part, str) and part for part in self.parts)


def role_of(message: Message) -> str:
    """The role that templates know a message by.

    Raises:
        PromptError: there is no such role.
    """
    if message.role not in ROLES:
        raise PromptError(
            f"role {json_text(message.role)} is not supported; use {', '.join(ROLES)}"
        )
    return ROLES[message.role]


def has_tools(messages: Sequence[Message]) -> bool:
    """True if a tool was called or answered."""
    return any(message.calls or message.role == "tool" for message in messages)


def with_tool_names(messages: Sequence[Message]) -> list[Message]:
    """The messages with the name of its tool in every result that does not say it."""
    names: dict[str | None, str] = {}
    named = []
    for message in messages:
        names |= {call.id: call.name for call in message.calls}
        if message.role == "tool" and message.name is None:
            message = replace(message, name=names.get(message.call_id))
        named.append(message)
    return named


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """The messages with nine letters and digits for every call's id, the same for the same id."""

    def short(name: str | None) -> str | None:
        if name is None or (len(name) == SHORT_ID and name.isalnum()):
            return name
        return hashlib.sha256(name.encode()).hexdigest()[:SHORT_ID]

    return [
        replace(
            message,
            calls=tuple(replace(call, id=short(call.id)) for call in message.calls),
            call_id=short(message.call_id),
        )
        for message in messages
    ]


def as_text_turns(messages: Sequence[Message]) -> list[Message]:
    """The conversation for a template that does not know tools."""
    turns: list[Message] = []
    results: list[Part] = []
    for message in with_tool_names(messages):
        if message.role == "tool":
            results += _result(message)
            continue
        if results and message.role == "user":
            message = replace(message, parts=(*results, *message.parts))
        elif results:
            turns.append(Message("user", tuple(results)))
        results = []
        if message.calls:
            own = [part for part in message.parts if part != ""]
            lines = [f"Call {c.name}: {arguments_text(c.arguments)}" for c in message.calls]
            message = replace(message, parts=(*own, *lines), calls=())
        turns.append(message)
    return [*turns, Message("user", tuple(results))] if results else turns


def arguments_text(arguments: object) -> str:
    """Arguments of a call as templates write them; what is a text already stays as it is."""
    return arguments if isinstance(arguments, str) else json_text(arguments)


def json_text(value: object) -> str:
    """JSON as templates write it."""
    return json.dumps(value, ensure_ascii=False)


def strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def all_texts(messages: Sequence[Message]) -> Iterator[str]:
    """Everything in a conversation that a template may write into a prompt."""
    for message in messages:
        yield from (part for part in message.parts if isinstance(part, str))
        yield from strings([message.name or "", message.reasoning or "", message.call_id or ""])
        for call in message.calls:
            yield from strings([call.name, call.id or "", call.arguments])


def _result(message: Message) -> list[Part]:
    texts = [part for part in message.parts if isinstance(part, str)]
    return [f"Result of {message.name or 'the tool'}: " + "\n".join(texts), *message.images]
