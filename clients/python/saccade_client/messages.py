"""Make the `messages` of a chat request out of a prompt, or out of messages, and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from saccade_client.choices import Message
from saccade_client.errors import InvalidInput
from saccade_client.images import Images, image_parts
from saccade_client.interventions import plain

Prompt: TypeAlias = "str | Sequence[Mapping[str, Any] | Message]"
WANTED = "a string or a list of messages with 'role' and 'content'"


def chat_messages(prompt: Prompt, images: Images | None) -> list[dict[str, Any]]:
    """Return messages in which `images` stand before the text of the last user message.

    Raises InvalidInput for what cannot be a conversation; roles are left to the server.
    """
    messages = copied(prompt)
    parts = image_parts(images) if images is not None else []
    if parts:
        asking = last_user(messages)
        asking["content"] = [*parts, *content_parts(asking.get("content"))]
    return messages


def copied(prompt: Prompt) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or not prompt:
        raise InvalidInput(f"a prompt is {WANTED}, not {prompt!r:.80}")
    return [copied_message(message, index) for index, message in enumerate(prompt)]


def copied_message(message: object, index: int) -> dict[str, Any]:
    """Return a message in JSON's own types; an answer's goes back with its reasoning and calls."""
    if isinstance(message, Message):
        return message.entry()
    if not isinstance(message, Mapping):
        raise InvalidInput(f"message {index} is {type(message).__name__}; a prompt is {WANTED}")
    copy: dict[str, Any] = plain(message, f"messages[{index}]")
    return copy


def last_user(messages: list[dict[str, Any]]) -> dict[str, Any]:
    asking = [message for message in messages if message.get("role") == "user"]
    if not asking:
        raise InvalidInput("images need a message with role 'user' to go into")
    return asking[-1]


def content_parts(content: Any) -> list[Any]:
    """Return a message's content as a list of parts; null and empty text are none."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list | None):
        raise InvalidInput(f"images go into a text or a list of parts, not {content!r:.80}")
    return list(content or [])
