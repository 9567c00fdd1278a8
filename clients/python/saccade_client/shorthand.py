"""The one-line way to write an intervention, the same that the server's command line reads.

    entry  =  method [ ":" name "=" value { "," name "=" value } ]
    value  =  JSON, where it parses  |  item "|" item ...  |  plain text

`layers=2|3` and `layers=[2,3]` are the same; `layers=2|` is a list of one. Commas and bars inside
brackets or double quotes do not divide. What the command line would pass on as odd text for the
server to refuse (an open bracket, a missing value, NaN) is refused here.
"""

import json
import re
from typing import Any, NoReturn

from saccade_client.errors import InvalidInput

# A quoted string counts as one letter, so nothing inside it divides.
LETTER = re.compile(r'"(?:\\.|[^"\\])*"?|.', re.DOTALL)


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Return the method and its parameters. Raises InvalidInput, saying what is wrong where."""
    method, _, rest = text.partition(":")
    parameters: dict[str, Any] = {}
    for part in split(rest, ",") if rest.strip() else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            hint = "parameters are name=value, and lists are layers=2|3 or layers=[2,3]"
            reject(text, f"{part.strip()!r} is not a parameter: {hint}")
        if name in parameters or name == "method":
            reject(text, f"{name!r} is given twice")
        parameters[name] = listed(value, text)
    return method.strip(), parameters


def split(text: str, separator: str) -> list[str]:
    """Split at `separator` outside brackets and double quotes."""
    parts, depth = [""], 0
    for letter in LETTER.findall(text):
        if letter == separator and not depth:
            parts.append("")
            continue
        parts[-1] += letter
        if letter in ("[", "{"):
            depth += 1
        elif letter in ("]", "}"):
            depth = max(depth - 1, 0)
    return parts


def listed(value: str, text: str) -> Any:
    items = [item.strip() for item in split(value, "|")]
    if len(items) == 1:
        return scalar(value, text)
    if not items[-1]:
        items.pop()
    return [scalar(item, text) for item in items]


def scalar(value: str, text: str) -> Any:
    if not value:
        reject(text, 'a value is missing; write "" for an empty string')
    try:
        return json.loads(value, parse_constant=lambda name: reject(text, f"{name} is no number"))
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        if value[0] in '[{"':
            raise InvalidInput(f"{text!r}: {value!r} is not JSON: {error}") from error
        return value


def reject(text: str, reason: str) -> NoReturn:
    raise InvalidInput(f"{text!r}: {reason}")
