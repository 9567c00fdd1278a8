"""The numbers and texts inside a JSON schema: those that can be told apart in an answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

from saccade_server.grammars.errors import TOO_LARGE, UNSUPPORTED, GrammarError, Path

LARGEST: Final = 2**53
"""Beyond it, doubles skip whole numbers: readers of JSON disagree about what was written."""

MOST_DIGITS: Final = 15
SMALLEST: Final = 1e-6
LARGEST_FACTOR: Final = 10_000
"""Of multipleOf without its decimal point: what is compiled has as many states."""

LONGEST: Final = 10_000
"""Characters that a text may have to have; those whose length counts have limits (limits.py)."""

MOST_VALUES: Final = 50_000

COUNTS: Final = frozenset(
    f"{least}{what}" for least in ("min", "max") for what in ("Items", "Length", "Properties")
)
_BESIDE: Final = frozenset({"$ref", "anyOf", "oneOf"})
BOUNDS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})


def count(value: Any, name: str) -> int:
    """A number of things; 2.0 is 2."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise GrammarError(f"{name} must be a whole number from 0 to 2147483647.")
    if name == "minLength" and value > LONGEST:
        raise GrammarError(f"minLength must be at most {LONGEST}.", code=TOO_LARGE)
    return value


def bound(value: Any, name: str) -> float:
    """A bound of numbers that is the same to all readers of JSON."""
    number = _number(value, name)
    digits = len(Decimal(repr(number)).normalize().as_tuple().digits)
    whole = isinstance(number, int) or number.is_integer()
    if abs(number) > LARGEST or (not whole and digits > MOST_DIGITS):
        raise GrammarError(
            f"{name} must have at most {MOST_DIGITS} digits, or be a whole number up to 2^53.",
            code=UNSUPPORTED,
        )
    if 0 < abs(number) < SMALLEST:
        message = f"{name} must be 0 or at least {SMALLEST} away from it."
        raise GrammarError(message, code=UNSUPPORTED)
    return int(number) if whole else number


def narrowed(node: dict[str, Any], always: bool) -> None:
    """Move exclusive whole bounds by a millionth where llguidance would let the bound itself pass.

    It does so where the other bound is less than 1 away: 0 < x <= 0.5 has 0 then. ``always``: the
    other bound may be in another part of the schema.
    """
    for name, other, sign in (("Minimum", "Maximum", 1), ("Maximum", "Minimum", -1)):
        exclusive = node.get(f"exclusive{name}")
        if not isinstance(exclusive, int) or node.get("type") == "integer":
            continue
        others = (node.get(other.lower()), node.get(f"exclusive{other}"))
        if always or any(far is not None and abs(far - exclusive) < 1 for far in others):
            del node[f"exclusive{name}"]
            least = exclusive + sign * SMALLEST
            plain = node.get(name.lower(), least)
            node[name.lower()] = max(plain, least) if sign > 0 else min(plain, least)


def merges(document: Any) -> bool:
    """Whether bounds in different parts of a document may hold together."""
    waiting = [document]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(part)
        elif isinstance(part, Mapping):
            if "allOf" in part or (part.keys() & BOUNDS and part.keys() & _BESIDE):
                return True
            waiting.extend(part.values())
    return False


def factor(value: Any) -> float:
    """What numbers must be multiples of."""
    number = _number(value, "multipleOf")
    if number <= 0:
        raise GrammarError("multipleOf must be greater than 0.")
    sign, digits, exponent = Decimal(repr(number)).as_tuple()
    assert isinstance(exponent, int)
    coefficient = Decimal((sign, digits, max(exponent, 0)))
    if coefficient > LARGEST_FACTOR or exponent < -9:
        raise GrammarError(
            f"multipleOf must be at most {LARGEST_FACTOR} without its decimal point, and have at "
            "most 9 digits behind it.",
            code=UNSUPPORTED,
        )
    return number


def values(given: Any, name: str) -> None:
    """Check the values that an answer may be."""
    if name == "enum" and (not isinstance(given, list) or not given):
        raise GrammarError("enum must be a list of at least one value.")
    if name == "enum" and len(given) > MOST_VALUES:
        raise GrammarError(f"enum has more than {MOST_VALUES} values.", code=TOO_LARGE)
    for path, value in _leaves(given):
        below = path if name == "enum" else ()
        if isinstance(value, str):
            text(value, below)
        elif isinstance(value, (int, float)) and not abs(value) <= LARGEST:
            raise GrammarError("A number here must be at most 2^53.", below, UNSUPPORTED)


def text(value: str, path: Path = ()) -> str:
    """A text without halves of characters, which no token spells."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise GrammarError("The text has half of a surrogate pair.", path)
    return value


def _number(value: Any, name: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise GrammarError(f"{name} must be a number.")
    return value


def _leaves(given: Any) -> Iterator[tuple[Path, Any]]:
    """Values and keys, with the index of the first list that they are in."""
    waiting: list[tuple[Path, Any]] = [((), given)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, list):
            waiting.extend((path or (index,), item) for index, item in enumerate(value))
        elif isinstance(value, Mapping):
            waiting.extend((path, key) for key in value)
            waiting.extend((path, item) for item in value.values())
        else:
            yield path, value
