"""Keep control tokens that somebody typed from becoming control tokens.

A chat template joins its own control tokens and the client's text into one string, and a tokenizer
cannot tell them apart. So before rendering, each control token inside client text is replaced by
one private-use character that occurs nowhere else in the request; after rendering, the string is
split there, and the pieces in between are encoded as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import NamedTuple

PRIVATE_USE = chain(range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE), range(0xE000, 0xF900))
PRIVATE_CHARACTERS = tuple(map(chr, PRIVATE_USE))


class Segment(NamedTuple):
    """A piece of a rendered prompt; a typed piece must be encoded as plain text."""

    text: str
    typed: bool


@dataclass(frozen=True)
class ControlTokens:
    """The strings a tokenizer does not treat as text.

    ``special`` ones carry the structure of a prompt and the places of images. ``others`` are
    words of the model's own, such as <think>: it writes them, the client sees them as text, and
    in an assistant message they come back as what they were.
    """

    special: frozenset[str]
    others: frozenset[str] = frozenset()

    @cached_property
    def all(self) -> frozenset[str]:
        """Both kinds."""
        return self.special | self.others

    @cached_property
    def beginnings(self) -> frozenset[str]:
        """What either kind may begin with, the whole of it included."""
        return frozenset(text[:end] for text in self.all for end in range(1, len(text) + 1))

    def marker(self, texts: Iterable[Iterable[str]]) -> Marker:
        """Start on one request; ``texts`` is everything that will be rendered, or its letters."""
        return Marker(self, set().union(*texts))


class Marker:
    """Marks the control tokens of one request's texts, and finds the marks again."""

    def __init__(self, tokens: ControlTokens, taken: set[str]) -> None:
        self._own = _any_of(tokens.special)
        self._foreign = _any_of(tokens.all)
        self._beginnings = tokens.beginnings
        self._longest = max(map(len, self._beginnings), default=1) - 1
        self._free = (c for c in PRIVATE_CHARACTERS if c not in taken)
        self._marks: dict[str, str] = {}

    def mark(self, text: str, *, by_assistant: bool = False, more_follows: bool = False) -> str:
        """Replace control tokens in ``text``.

        With ``more_follows``, an ending that could be completed to a control token by text
        behind it is replaced as well.
        """
        pattern = self._own if by_assistant else self._foreign
        marked = pattern.sub(lambda match: self._mark_of(match.group()), text)
        fragment = self._fragment(marked) if more_follows else ""
        if not fragment:
            return marked
        return marked.removesuffix(fragment) + self._mark_of(fragment)

    def place(self) -> str:
        """A character that is in none of the texts and stands for nothing: it marks a place."""
        return next(self._free)

    def split(self, rendered: str) -> list[Segment]:
        """Cut a rendered prompt at the marks and put the typed strings back."""
        return list(self._segments(rendered))

    def _segments(self, rendered: str) -> Iterator[Segment]:
        typed = {mark: text for text, mark in self._marks.items()}
        if not typed:
            yield Segment(rendered, False)
            return
        for piece in re.split(f"([{''.join(typed)}])", rendered):
            if piece:
                yield Segment(typed.get(piece, piece), piece in typed)

    def _mark_of(self, text: str) -> str:
        if text not in self._marks:
            self._marks[text] = next(self._free)
        return self._marks[text]

    def _fragment(self, text: str) -> str:
        """The longest ending of ``text`` that begins a control token."""
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return text[-length:]
        return ""


@lru_cache(maxsize=16)
def _any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    """Match any of ``tokens``, longer ones first; match nothing if there are none."""
    longest_first: Sequence[str] = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
