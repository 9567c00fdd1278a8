"""A grammar as data: what a request's answer must be, on its way from the API to the engine."""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec


class GrammarKind(StrEnum):
    """What a request gave; the names are those that receipts show."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    STRUCTURAL_TAG = "structural_tag"
    TOOLS = "tools"


class Thinking(msgspec.Struct, frozen=True):
    """The tokens around a model's reasoning, which no grammar holds.

    ``opens``: the token that may come first, and begins it; None: the prompt has begun it already.
    ``closes``: the token behind which the grammar begins.
    """

    opens: int | None
    closes: int


class Grammar(msgspec.Struct, frozen=True):
    """What a whole answer must be, behind its reasoning if there may be some.

    ``source`` is a grammar of llguidance: Lark's syntax with its extensions, or JSON of several.
    """

    kind: GrammarKind
    source: str
    thinking: Thinking | None = None


class GrammarCount(msgspec.Struct, frozen=True):
    """What a grammar did to one answer.

    ``constrained`` tokens were drawn under it, ``forced`` of these because it left no other.
    ``complete``: the answer ended where the grammar lets answers end.
    """

    constrained: int = 0
    forced: int = 0
    complete: bool = False

    @classmethod
    def of(cls, holds: bytes, complete: bool) -> GrammarCount:
        """The count over tokens that it has held so, a byte of :class:`Hold` each."""
        return cls(len(holds) - holds.count(Hold.FREE), holds.count(Hold.FORCED), complete)


class Hold(IntEnum):
    """How a grammar held one token of an answer."""

    FREE = 0  # of reasoning, or an end
    CONSTRAINED = 1
    FORCED = 2
