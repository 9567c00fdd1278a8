"""From a client's message to the models room's: calls with arguments read, refusals as text."""

from __future__ import annotations

from typing import Any

from saccade_server.api.errors import BadRequest
from saccade_server.api.messages import ChatMessage, ToolCall
from saccade_server.api.parsing import load
from saccade_server.models import conversation


def converted(message: ChatMessage, parts: tuple[Any, ...], path: str) -> conversation.Message:
    """The message, its content made ``parts`` already.

    Raises:
        BadRequest: a call's arguments are no JSON object.
    """
    own = message.role == "assistant"
    if own and message.refusal:
        parts = (*parts, message.refusal)
    calls = [
        _call(call, f"{path}.tool_calls[{at}].function.arguments")
        for at, call in enumerate(message.tool_calls or ())
    ]
    return conversation.Message(
        message.role,
        parts or ("",),
        name=message.name,
        reasoning=message.thoughts,
        calls=tuple(calls),
        call_id=message.tool_call_id if message.role == "tool" else None,
    )


def _call(call: ToolCall, path: str) -> conversation.ToolCall:
    given = call.function.arguments
    if isinstance(given, str):
        given = _read(given, path)
    return conversation.ToolCall(call.function.name, given or {}, call.id)


def _read(text: str, path: str) -> dict[str, Any]:
    """Arguments as OpenAI's API has them, a JSON text; an empty one has none."""
    if not text.strip():
        return {}
    try:
        value = load(text.encode())
    except BadRequest as error:
        message = error.message.replace("The body", "The text")
        raise BadRequest(message, param=path) from None
    if not isinstance(value, dict):
        message = "The arguments of a call are a JSON object, or the text of one."
        raise BadRequest(message, param=path)
    return value
