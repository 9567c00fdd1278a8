"""The pieces that sources are written from: Lark's syntax as llguidance reads it."""

from __future__ import annotations

import json
from typing import Final

HEADER: Final = '%llguidance {"no_forcing": true}\n'
"""Begins every source. Text that a grammar leaves no choice about is not cut into tokens by
llguidance: the model keeps choosing how it spells it, and no tokenizer is needed here."""


def quoted(text: str) -> str:
    """A literal of exactly this text; empty for no text."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def slashed(expression: str) -> str:
    """A regular expression between slashes, its own slashes escaped."""
    out, escaped = [], False
    for character in expression:
        out.append("\\/" if character == "/" and not escaped else character)
        escaped = character == "\\" and not escaped
    return "/" + "".join(out).replace("\n", "\\n") + "/"
