"""What is refused by its length alone, before anything walks through it.

These run on a body that is JSON and nothing more is known of: other types are refused later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saccade_server.api.body.messages import ChatMessage
from saccade_server.api.body.values import MOST_BIASES
from saccade_server.api.errors import BadRequest
from saccade_server.api.services import Services
from saccade_server.api.tools.fields import MOST_TOOLS
from saccade_server.models.conversation import strings
from saccade_server.requests.limits import check_length

MOST_PARTS = 4096
"""Texts and images that the messages of a conversation may have together."""


def check_lengths(services: Services, value: dict[str, Any]) -> None:
    """Refuse what would take long to validate and could not be served anyway."""
    settings = services.settings
    _at_most(settings.max_messages, value, "messages")
    _at_most(MOST_BIASES, value, "logit_bias")
    _at_most(MOST_TOOLS, value, "tools")
    _check_parts(value.get("messages"))
    prompt = value.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        _at_most(settings.max_prompts, value, "prompt")
        for at, item in enumerate(prompt):
            _check_room(services, item, f"prompt[{at}]")
    else:
        _check_room(services, prompt, "prompt")
    _at_most(settings.max_prompts, value, "continuations")
    continuations = value.get("continuations")
    for at, item in enumerate(continuations if isinstance(continuations, list) else ()):
        _check_continuation(services, item, f"continuations[{at}]")
    for name in ("prompt_tokens", "tokens"):
        _check_room(services, value.get(name), name)


def check_conversation(services: Services, messages: Sequence[ChatMessage]) -> None:
    """Refuse a conversation whose texts alone cannot fit."""
    _check_characters(services, sum(message.characters for message in messages), "messages")


def check_tools(services: Services, tools: Sequence[Mapping[str, Any]]) -> None:
    """Refuse tools whose texts alone cannot fit."""
    _check_characters(services, sum(map(len, strings(tools))), "tools")


def _at_most(most: int, value: dict[str, Any], name: str) -> None:
    given = value.get(name)
    if isinstance(given, list | dict) and len(given) > most:
        raise BadRequest(f"{name} may have {most} entries.", param=name)


def _check_parts(messages: object) -> None:
    items = messages if isinstance(messages, list) else []
    lists = [
        item.get(name)
        for item in items
        if isinstance(item, dict)
        for name in ("content", "tool_calls")
    ]
    if sum(len(parts) for parts in lists if isinstance(parts, list)) > MOST_PARTS:
        message = f"A conversation may have {MOST_PARTS} content parts and tool calls."
        raise BadRequest(message, param="messages")


def _check_room(services: Services, prompt: object, param: str) -> None:
    if isinstance(prompt, str):
        _check_characters(services, len(prompt), param)
    elif isinstance(prompt, list):
        check_length(len(prompt), services.engine.info, param)


def _check_continuation(services: Services, item: object, param: str) -> None:
    """Refuse one that fits behind no prompt."""
    longest = services.prompts.max_token_chars
    least = len(item) if isinstance(item, list) else 0
    if isinstance(item, str) and longest is not None:
        least = -(-len(item) // longest)
    if least >= services.room:
        message = (
            f"The continuation has {least} tokens at least; with its prompt it may have "
            f"{services.room}."
        )
        raise BadRequest(message, code="context_length_exceeded", param=param)


def _check_characters(services: Services, characters: int, param: str) -> None:
    longest = services.prompts.max_token_chars
    if longest is not None and characters > services.room * longest:
        message = (
            f"The prompt has {characters} characters, more than {services.room} tokens can hold."
        )
        raise BadRequest(message, code="context_length_exceeded", param=param)
