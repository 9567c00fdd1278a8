"""The command line's way to write an entry: ``var:move_fraction=0.6,layers=2|3|4``.

    entry  =  method [ ":" field "=" value { "," field "=" value } ]
    value  =  JSON, where it parses  |  item "|" item ...  |  plain text

``layers=2|`` is a list of one. Commas and bars inside brackets or double quotes do not divide.
Only the notation is checked here; the registry checks the entry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_PAIRS = {"[": "]", "{": "}"}
_SPECIAL = set(',|[]{}"')


def parse(text: str) -> dict[str, Any]:
    """The entry that ``text`` stands for.

    Raises:
        ValueError: it is not in the notation.
    """
    method, colon, rest = text.partition(":")
    entry: dict[str, Any] = {"method": method.strip()}
    if not entry["method"]:
        raise ValueError(f"no method in {text!r}; write method:field=value,field=value")
    for part in _split(rest, ",") if colon and rest.strip() else []:
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ValueError(f"{part!r} in {text!r} is not field=value")
        if name in entry:
            raise ValueError(f"{name!r} is given twice in {text!r}")
        entry[name] = _value(value.strip())
    return entry


def dump(entry: Mapping[str, Any]) -> str:
    """The shorthand of an entry; :func:`parse` reads it back."""
    fields = [f"{name}={_text(value)}" for name, value in entry.items() if name != "method"]
    return str(entry["method"]) + (":" + ",".join(fields) if fields else "")


def _value(text: str) -> Any:
    items = _split(text, "|")
    if len(items) == 1:
        return _scalar(text)
    if not items[-1].strip():
        items.pop()
    return [_scalar(item.strip()) for item in items]


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(value: Any) -> str:
    if isinstance(value, str) and _is_plain(value):
        return value
    return json.dumps(value, separators=(",", ":"))


def _is_plain(text: str) -> bool:
    """True for text that reads back as itself without quotes."""
    trimmed = bool(text) and text.strip() == text
    return trimmed and not _SPECIAL & set(text) and _scalar(text) == text


def _split(text: str, separator: str) -> list[str]:
    """Split at ``separator`` outside brackets and double quotes."""
    parts, closing, quoted, escaped = [""], [""], False, False
    for letter in text:
        if letter == separator and not quoted and len(closing) == 1:
            parts.append("")
            continue
        parts[-1] += letter
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in _PAIRS:
            closing.append(_PAIRS[letter])
        elif letter == closing[-1]:
            closing.pop()
    return parts
