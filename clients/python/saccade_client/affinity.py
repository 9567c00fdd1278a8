"""What the turns of one conversation have in common, as a header for load balancers.

A server keeps what it computed of a prompt and need not compute it again when the next turn begins
with the same. Of several servers that is the one that had the conversation before, so requests
carry a key that all turns share, and a balancer sends equal keys to the same server while it has
room. The key is no secret and no identity: equal beginnings have equal keys, whoever sends them.

Definition. The head of a request with `messages` is the list of them up to the first of the role
"user", that one included, or all of them if there is none; with a `prompt` it is the first 256
characters (Unicode code points) of the text, or the first 256 token ids; of several prompts, of the
first. The model's base name is `model` up to the first "+", "" without one. The key is the first
eight bytes, as sixteen small hexadecimal digits, of the SHA-256 of

    {"head":HEAD,"model":BASE}

written as JSON with the keys of every object in the order of their code points, without blanks, in
UTF-8, with no character escaped that JSON lets stand, and numbers as Python writes them. Without
messages and prompt there is no key. `tests/support/affinity.json` has examples.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

HEADER = "X-Saccade-Affinity"
HEAD_LENGTH = 256
KEY_BYTES = 8


def affinity_key(body: Mapping[str, Any]) -> str | None:
    """Return the key of a request's body, sixteen hexadecimal digits; None if it has no head."""
    head = _head(body)
    if not head:
        return None
    model = body.get("model")
    base = model.partition("+")[0] if isinstance(model, str) else ""
    value = {"head": head, "model": base}
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[: 2 * KEY_BYTES]


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
