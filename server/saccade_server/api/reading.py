"""What a reader makes of an answer's text: what is said, what is thought, and what is called.

A reader belongs to one choice, and gets its text in pieces as they are shown: behind stop strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec


class CallDelta(msgspec.Struct, frozen=True):
    """What is new about a tool call: the first has an id and a name; arguments are JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Said(msgspec.Struct, frozen=True):
    """A piece of an answer, told apart."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


class Reader(Protocol):
    """Tells the parts of one answer's text apart; holds back what may yet be a marker."""

    @property
    def shown(self) -> Mapping[int, str]:
        """Texts that tokens are written as in what it reads, special ones too."""
        ...

    @property
    def reasoned(self) -> float:
        """How many characters of what it has read are reasoning; endless while that goes on."""
        ...

    @property
    def has_called(self) -> bool:
        """Some tool has been called."""
        ...

    def read(self, text: str, last: bool) -> Said:
        """Take the next piece of text, possibly empty; behind the last one nothing is held back."""
        ...


@dataclass
class Call:
    """A call of a tool, complete."""

    id: str
    name: str
    arguments: str = ""
