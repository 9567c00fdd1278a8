"""The pieces that sources are written from: Lark's syntax as llguidance reads it."""

from __future__ import annotations

import json
from typing import Final

HEADER: Final = '%llguidance {"no_forcing": true}\n'
"""Begins every source. Text that a grammar leaves no choice about is not cut into tokens by
llguidance: the model keeps choosing how it spells it, and no tokenizer is needed here."""


def quoted(text: str) -> str:
    """A literal of exactly this text; empty for no text."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f") if text else ""


def slashed(expression: str) -> str:
    """A regular expression between slashes, its own slashes and line ends escaped."""
    letters = {"/": "/", "\n": "n"}
    out, escaped = [], False
    for character in expression:
        letter = letters.get(character)
        out.append(character if letter is None else letter if escaped else "\\" + letter)
        escaped = character == "\\" and not escaped
    return "/" + "".join(out) + "/"
