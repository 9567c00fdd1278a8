"""From a client's message to the models room's: calls with arguments read, refusals as text.

Arguments are the text that a model wrote, replayed by a client that cannot mend it. What is no JSON
object, such as one that max_tokens cut off, is therefore shown as that text; null is none at all.
"""

from __future__ import annotations

from typing import Any

from saccade_server.api.body.messages import ChatMessage, ToolCall
from saccade_server.api.body.parsing import load
from saccade_server.api.errors import BadRequest
from saccade_server.models import conversation


def converted(message: ChatMessage, parts: tuple[Any, ...]) -> conversation.Message:
    """The message, its content made ``parts`` already."""
    own = message.role == "assistant"
    if own and message.refusal:
        parts = (*parts, message.refusal)
    return conversation.Message(
        message.role,
        parts or ("",),
        name=message.name,
        reasoning=message.thoughts,
        calls=tuple(map(_call, message.tool_calls or ())),
        call_id=message.tool_call_id if message.role == "tool" else None,
    )


def _call(call: ToolCall) -> conversation.ToolCall:
    given = call.function.arguments
    if isinstance(given, str):
        given = _read(given)
    return conversation.ToolCall(call.function.name, given or {}, call.id)


def _read(text: str) -> dict[str, Any] | str:
    """Arguments as OpenAI's API has them, a JSON text; an empty one has none."""
    try:
        value = load(text.encode()) if text.strip() else None
    except BadRequest:
        return text
    return value if isinstance(value, dict) else text if value is not None else {}
