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
from saccade_server.grammars.limits import LIMITS
from saccade_server.grammars.matcher import TOO_COMPLEX, Matcher
from saccade_server.grammars.vocabulary import Vocabulary

THREADS: Final = 2
"""Compilations at a time: beside the steps of the engine, which need a core themselves."""

REMEMBERED: Final = 64
"""Prototypes kept for answers to come."""


def compiled(source: str, vocabulary: Vocabulary) -> LLMatcher:
    """A matcher of llguidance at the beginning of its text, its first mask computed.

    Raises GrammarFailed with llguidance's own words.
    """
    matcher = LLMatcher(vocabulary.tokenizer, source, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise GrammarFailed(matcher.get_error())
    row = np.zeros(vocabulary.words, np.int32)
    matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
    if matcher.is_error():
        raise GrammarFailed(TOO_COMPLEX)
    return matcher


class Compiler:
    """Makes the matchers of answers over one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, *, remembered: int = REMEMBERED) -> None:
        self._vocabulary = vocabulary
        self._threads = ThreadPoolExecutor(THREADS, "grammar")
        self._remembered = remembered
        self._lock = Lock()
        self._prototypes: OrderedDict[str, Future[LLMatcher]] = OrderedDict()

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

    def _prototype(self, source: str) -> Future[LLMatcher]:
        with self._lock:
            known = self._prototypes.get(source)
            if known is not None:
                self._prototypes.move_to_end(source)
                return known
            made = self._threads.submit(compiled, source, self._vocabulary)
            self._prototypes[source] = made
            while len(self._prototypes) > self._remembered:
                self._prototypes.popitem(last=False)
            return made

    def _hand_out(
        self, grammar: Grammar, prototype: Future[LLMatcher], answer: Future[Matcher]
    ) -> None:
        if not answer.set_running_or_notify_cancel():
            return
        try:
            with self._lock:  # a prototype may not be copied twice at a time
                copy = prototype.result().deep_copy()
            answer.set_result(Matcher(copy, self._vocabulary, grammar.thinking))
        except BaseException as error:
            answer.set_exception(error)
