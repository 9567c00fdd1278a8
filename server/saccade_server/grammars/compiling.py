"""Grammars become matchers, in threads of their own, each source once while it is remembered."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Final

import numpy as np
from llguidance import LLMatcher

from saccade_server.grammars.errors import GrammarFailed
from saccade_server.grammars.grammar import Grammar
from saccade_server.grammars.matcher import TOO_COMPLEX, Matcher
from saccade_server.grammars.telling import refusal
from saccade_server.grammars.trial import compiled
from saccade_server.grammars.vocabulary import Vocabulary

THREADS: Final = 2
"""Compilations at a time: beside the steps of the engine, which need a core themselves."""

CACHE_BYTES: Final = 256 * 1024 * 1024
"""What prototypes may weigh together, by the measured numbers below."""

_BASE_BYTES: Final = 2 * 1024 * 1024
_BYTES_PER_CHARACTER: Final = 100
_BYTES_PER_TOKEN: Final = 20 * 1024
_MOST_STATES_BYTES: Final = 120 * 1024 * 1024


class Prototype:
    """A compiled source, copied for each answer.

    The copies of llguidance share the states of the lexer that any of them has met: copying costs
    nothing, and all of them become faster, but what one meets counts against the limits of all.
    """

    def __init__(self, source: str, vocabulary: Vocabulary) -> None:
        self._source = source
        self._vocabulary = vocabulary
        self._first = self.fresh()
        self._lock = Lock()
        self.tokens = 0
        """Accepted by copies."""

    @property
    def bytes(self) -> int:
        """An upper estimate of its memory."""
        states = min(self.tokens * _BYTES_PER_TOKEN, _MOST_STATES_BYTES)
        return _BASE_BYTES + len(self._source) * _BYTES_PER_CHARACTER + states

    def copy(self) -> LLMatcher:
        with self._lock:
            return self._first.deep_copy()

    def fresh(self) -> LLMatcher:
        """A matcher that shares nothing, its first mask computed."""
        try:
            matcher = compiled(self._source, self._vocabulary)
        except GrammarFailed as failed:
            raise GrammarFailed(refusal(str(failed)).message) from None
        row = np.zeros(self._vocabulary.words, np.int32)
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if matcher.is_error():
            raise GrammarFailed(TOO_COMPLEX)
        return matcher


class Compiler:
    """Makes the matchers of answers over one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._vocabulary = vocabulary
        self._threads = ThreadPoolExecutor(THREADS, "grammar")
        self._cache_bytes = cache_bytes
        self._lock = Lock()
        self._prototypes: OrderedDict[str, Future[Prototype]] = OrderedDict()

    def start(self, grammar: Grammar) -> Future[Matcher]:
        """The grammar's matcher, done at once where its source is remembered.

        The future raises GrammarFailed for a source that does not compile within the limits.
        """
        answer: Future[Matcher] = Future()
        self._prototype(grammar.source).add_done_callback(
            lambda prototype: self._hand_out(grammar, prototype, answer)
        )
        return answer

    def close(self) -> None:
        """Wait for what runs, and drop what waits."""
        self._threads.shutdown(cancel_futures=True)

    def _prototype(self, source: str) -> Future[Prototype]:
        with self._lock:
            known = self._prototypes.get(source)
            if known is None:
                known = self._threads.submit(Prototype, source, self._vocabulary)
                self._prototypes[source] = known
            self._prototypes.move_to_end(source)
            self._forget(keep=source)
            return known

    def _forget(self, keep: str) -> None:
        """Drop what was not asked for the longest, until the rest is light enough."""
        weights = {source: _weight(source, made) for source, made in self._prototypes.items()}
        total = sum(weights.values())
        for source, weight in weights.items():
            if total <= self._cache_bytes or source == keep:
                return
            del self._prototypes[source]
            total -= weight

    def _hand_out(self, grammar: Grammar, made: Future[Prototype], answer: Future[Matcher]) -> None:
        if not answer.set_running_or_notify_cancel():
            return
        try:
            prototype = made.result()
            answer.set_result(Matcher(prototype, self._vocabulary, grammar.thinking))
        except BaseException as error:
            answer.set_exception(error)


def _weight(source: str, made: Future[Prototype]) -> int:
    if made.done() and not made.cancelled() and made.exception() is None:
        return made.result().bytes
    return _BASE_BYTES + len(source) * _BYTES_PER_CHARACTER
