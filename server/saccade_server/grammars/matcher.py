"""Where one answer is in its grammar: which tokens may come next, and what has come."""

from __future__ import annotations

import re
import time
from enum import Enum, auto
from typing import Protocol

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from saccade_server.grammars.errors import GrammarFailed
from saccade_server.grammars.grammar import GrammarCount, Hold, Thinking
from saccade_server.grammars.limits import FIRST_MASK_SECONDS, MASK_SECONDS
from saccade_server.grammars.vocabulary import Vocabulary

MOST_BREAKS = 2
"""Line ends between reasoning and what a grammar holds."""

TOO_COMPLEX = (
    "The grammar is too complex at this point of the answer: the tokens that it allows cannot be "
    "found within the server's limits. Simplify it."
)
TOO_SLOW = (
    "The grammar is too slow: finding the tokens that it allows took more time than an answer has. "
    "Simplify it."
)
DEAD_END = "The grammar allows no token at this point of the answer, so it can never be completed."
REFUSED = "A token came that the grammar does not allow at this point of the answer."


_LIMITS = re.compile(r"too many|Too many|too big|fuel|max is|limit")


class Compiled(Protocol):
    """What answers are matched with."""

    tokens: int

    def copy(self) -> LLMatcher:
        """A matcher at the beginning of its text, which others may have warmed."""

    def fresh(self) -> LLMatcher:
        """The same, made anew."""


class _Gate(Enum):
    """Who rules the next token."""

    MAY_OPEN = auto()  # the grammar, or the token that opens the reasoning
    INSIDE = auto()  # nobody, but that reasoning ends with its closing token
    BEHIND = auto()  # the grammar, or a line's end: models write two behind their reasoning
    GRAMMAR = auto()


class Matcher:
    """The state of one answer; used by one thread at a time.

    Reasoning is free, but for the tokens that end answers: an answer that must follow a grammar
    does not end before the grammar began.
    """

    def __init__(
        self, compiled: Compiled, vocabulary: Vocabulary, thinking: Thinking | None = None
    ) -> None:
        self._compiled = compiled
        self._matcher = compiled.copy()
        self._renewed = False
        self._seconds = 0.0
        self._tokens: list[int] = []
        self._vocabulary = vocabulary
        self._thinking = thinking
        self._gate = _Gate.GRAMMAR
        if thinking is not None:
            self._gate = _Gate.INSIDE if thinking.opens is None else _Gate.MAY_OPEN
        self._breaks = MOST_BREAKS
        self._allowed = 0
        self._holds = bytearray()
        self._ended = False

    def fill(self, row: NDArray[np.int32]) -> int:
        """Write the tokens that may come next as bits of ``row`` [words], lowest first.

        Returns how many they are. Raises GrammarFailed where there is none, or where the search for
        them went beyond the limits.
        """
        if row.dtype != np.int32 or row.shape != (self._vocabulary.words,):
            raise ValueError(f"a mask is int32 [{self._vocabulary.words}]")
        if not row.flags["C_CONTIGUOUS"] or not row.flags["WRITEABLE"]:
            raise ValueError("a mask must be contiguous and writable")
        if self._gate is _Gate.INSIDE:
            return self._fill_reasoning(row)
        self._compute(row)
        self._allowed = int(np.bitwise_count(row.view(np.uint32)).sum())
        if self._allowed == 0:
            raise GrammarFailed(DEAD_END)
        for token in self._beside():
            if not _has(row, token):
                _put(row, token, True)
                self._allowed += 1
        return self._allowed

    def _beside(self) -> list[int]:
        """Tokens that may come where the grammar rules, but are none of its text."""
        if self._gate is _Gate.MAY_OPEN and self._thinking is not None:
            return [] if self._thinking.opens is None else [self._thinking.opens]
        if self._gate is _Gate.BEHIND:
            return [t for t, ends in self._vocabulary.breaks.items() if ends <= self._breaks]
        return []

    def _compute(self, row: NDArray[np.int32]) -> None:
        began = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._at_limits() and self._renew():
            self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._matcher.is_error():  # the mask allows the ends, as if the answer were whole
            raise GrammarFailed(TOO_COMPLEX if self._at_limits() else DEAD_END)
        self._seconds += time.thread_time() - began
        if self._seconds > FIRST_MASK_SECONDS + MASK_SECONDS * len(self._tokens):
            raise GrammarFailed(TOO_SLOW)

    def _at_limits(self) -> bool:
        """Whether llguidance gave up, rather than found nothing or refused a token."""
        return self._matcher.is_error() and bool(_LIMITS.search(self._matcher.get_error()))

    def _renew(self) -> bool:
        """Go on with a matcher of its own, once: copies share states that others may have used."""
        if self._renewed:
            return False
        self._renewed = True
        self._matcher = self._compiled.fresh()
        return self._matcher.consume_tokens(self._tokens)

    def _fill_reasoning(self, row: NDArray[np.int32]) -> int:
        row.fill(-1)
        row[-1] = np.int32(-1 if self._vocabulary.size % 32 == 0 else 0)
        for token in range(self._vocabulary.size // 32 * 32, self._vocabulary.size):
            _put(row, token, True)
        for end in self._vocabulary.ends:
            _put(row, end, False)
        return self._vocabulary.size - len(self._vocabulary.ends)

    def accept(self, token: int) -> None:
        """Take the next token of the answer; an end may come, too.

        Raises GrammarFailed for a token that is not allowed.
        """
        hold = Hold.FREE
        if self._gate is _Gate.INSIDE:
            if token in self._vocabulary.ends:
                raise GrammarFailed(REFUSED)
            if self._thinking is not None and token == self._thinking.closes:
                self._gate = _Gate.BEHIND
        elif token not in self._beside():
            self._gate = _Gate.GRAMMAR
            hold = self._accept_ruled(token)
        elif self._gate is _Gate.MAY_OPEN:
            self._gate = _Gate.INSIDE
        else:
            self._breaks -= self._vocabulary.breaks[token]
        self._holds.append(hold)

    def _accept_ruled(self, token: int) -> Hold:
        if token in self._vocabulary.ends:
            if not self.complete:
                raise GrammarFailed(REFUSED)
            self._ended = True
            return Hold.FREE
        taken = not self._ended and self._matcher.consume_token(token)
        if not taken and self._at_limits() and self._renew():
            taken = self._matcher.consume_token(token)
        if not taken:
            raise GrammarFailed(TOO_COMPLEX if self._at_limits() else REFUSED)
        self._tokens.append(token)
        self._compiled.tokens += 1
        hold = Hold.FORCED if self._allowed == 1 else Hold.CONSTRAINED
        self._allowed = 0
        return hold

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return self._gate in (_Gate.GRAMMAR, _Gate.BEHIND) and (
            self._matcher.is_accepting() and not self._matcher.is_error()
        )

    @property
    def finished(self) -> bool:
        """Whether nothing but an end may come."""
        return self._gate is _Gate.GRAMMAR and self.complete and self._matcher.is_stopped()

    @property
    def count(self) -> GrammarCount:
        """What the grammar did up to here; ends are not counted."""
        return GrammarCount.of(self.holds, self.complete)

    @property
    def holds(self) -> bytes:
        """How it held each of the tokens that it took, see :class:`Hold`."""
        return bytes(self._holds)


def _has(row: NDArray[np.int32], token: int) -> bool:
    return bool(row.view(np.uint32)[token // 32] >> np.uint32(token % 32) & np.uint32(1))


def _put(row: NDArray[np.int32], token: int, allowed: bool) -> None:
    words, bit = row.view(np.uint32), np.uint32(1 << token % 32)
    words[token // 32] = words[token // 32] | bit if allowed else words[token // 32] & ~bit
