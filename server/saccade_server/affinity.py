"""What the turns of one conversation have in common: the key that load balancers go by.

The client computes the same (`saccade_client/affinity.py`, which has the definition), and vectors
hold both to it. It is computed here for requests that came without the header.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

HEADER = "X-Saccade-Affinity"
HEAD_LENGTH = 256
KEY_BYTES = 8


def affinity_key(body: Mapping[str, Any]) -> str | None:
    """The key of a request's body, sixteen hexadecimal digits; None if it has no head.

    The body is whatever JSON somebody sent; what cannot be written again has no key.
    """
    head = _head(body)
    if not head:
        return None
    model = body.get("model")
    base = model.partition("+")[0] if isinstance(model, str) else ""
    value = {"head": head, "model": base}
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[: 2 * KEY_BYTES]
    except (ValueError, RecursionError):  # lone surrogates, absurd nesting
        return None


def _head(body: Mapping[str, Any]) -> Any:
    messages = body.get("messages")
    if isinstance(messages, list):
        return messages[: _first_user(messages) + 1]
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    return prompt[:HEAD_LENGTH] if isinstance(prompt, str | list) else None


def _first_user(messages: list[Any]) -> int:
    for index, message in enumerate(messages):
        if isinstance(message, Mapping) and message.get("role") == "user":
            return index
    return len(messages) - 1
