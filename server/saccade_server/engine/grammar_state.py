"""Where a sequence is in its grammar: compiled or not yet, what it has been told, how it failed."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saccade_server.engine.request import Failure
from saccade_server.grammars.grammar import GrammarCount

if TYPE_CHECKING:
    from saccade_server.grammars.matcher import Matcher


@dataclass(frozen=True)
class GrammarStop:
    """Why a grammar cannot go on: nothing can be drawn behind so many tokens of the answer."""

    behind: int
    kind: Failure
    reason: str


@dataclass(slots=True)
class GrammarState:
    """Of a leader; its branches follow it. It outlives preemption: no token is told twice."""

    compiling: Future[Matcher]
    matcher: Matcher | None = None  # None: it is being compiled
    known: int = 0  # tokens of the answer that the matcher has been told
    ended: bool = False  # the last of them ends the answer
    stop: GrammarStop | None = None

    @property
    def count(self) -> GrammarCount:
        """What it did up to here."""
        return GrammarCount() if self.matcher is None else self.matcher.count

    @property
    def holds(self) -> bytes:
        """How it held each token up to here."""
        return b"" if self.matcher is None else self.matcher.holds

    def stops(self, generated: int) -> GrammarStop | None:
        """Why nothing can be drawn behind so many tokens; None: something can."""
        return self.stop if self.stop is not None and self.stop.behind <= generated else None
