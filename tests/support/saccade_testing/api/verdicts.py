"""What the values of a request's fields do, field by field; see tests/server/api/test_walk.py."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Verdict:
    """What values do.

    ``beside``: fields that the request has anyway; ``without``: fields that it lacks. ``null``:
    null is the same as leaving the field out, and not something that depends on chance, on the
    role of a message, or on what is tried here.
    """

    changes: list[Any] = field(default_factory=list)
    default: list[Any] = field(default_factory=list)
    refused: list[Any] = field(default_factory=list)
    beside: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    null: bool = True
    no_effect: bool = False


def number(changes: list[Any], default: list[Any], refused: list[Any], **more: Any) -> Verdict:
    return Verdict(changes, default, [*refused, "1", [1], {}], **more)


def switch(**more: Any) -> Verdict:
    return Verdict([True], [False], [1, "true", []], **more)
