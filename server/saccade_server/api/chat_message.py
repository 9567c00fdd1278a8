"""An assistant's message in OpenAI's form, whole and in pieces: text, reasoning, calls of tools."""

from __future__ import annotations

from typing import Any

from saccade_server.api.answers import Collected
from saccade_server.api.choice import Delta
from saccade_server.api.reading import CallDelta

REASONING = "reasoning_content"


def message(said: Collected) -> dict[str, Any]:
    """The message of a whole answer; its content is null where it thought or called alone."""
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in said.calls
    ]
    more: dict[str, Any] = {REASONING: said.reasoning} if said.reasoning else {}
    if calls:
        more["tool_calls"] = calls
    content = said.text or (None if more else "")
    return {"role": "assistant", "content": content, "refusal": None, **more}


def news(delta: Delta) -> dict[str, Any]:
    """The delta of a streamed answer's event."""
    found: dict[str, Any] = {REASONING: delta.reasoning} if delta.reasoning else {}
    if delta.calls:
        found["tool_calls"] = [_call(call) for call in delta.calls]
    return {"content": delta.text, **found} if delta.text or not found else found


def _call(call: CallDelta) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}
