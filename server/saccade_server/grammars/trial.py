"""One grammar tried out: compiled over bytes, and followed along texts as they happen to come."""

from __future__ import annotations

import random
from typing import Final

import numpy as np
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from saccade_server.grammars.errors import GrammarFailed
from saccade_server.grammars.limits import LIMITS
from saccade_server.grammars.vocabulary import BYTES, Vocabulary

TOO_COMPLEX: Final = "the grammar is too complex to find the tokens that it allows"
DEAD_END: Final = "the grammar leads to a place where nothing can follow"

_STEPS: Final = 300
_STRUCTURE: Final = frozenset(b'"{}[],:')
"""Bytes that lead on in most texts; others fill strings."""


def compiled(source: str, vocabulary: Vocabulary) -> LLMatcher:
    """A matcher of llguidance at the beginning of its text.

    Raises GrammarFailed with llguidance's own words.
    """
    matcher = LLMatcher(vocabulary.tokenizer, source, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise GrammarFailed(matcher.get_error())
    return matcher


def tried(source: str) -> str | None:
    """What is wrong with a source, in llguidance's words or in one of ours; None: nothing found."""
    try:
        matcher = compiled(source, BYTES)
    except GrammarFailed as failed:
        return str(failed)
    draws = random.Random(0)
    for _ in range(_STEPS):
        allowed = _allowed(matcher)
        if matcher.is_error():
            said = matcher.get_error()
            return DEAD_END if said.startswith("NoExtension") else f"{TOO_COMPLEX}: {said}"
        following = [token for token in allowed if token not in BYTES.ends]
        if not following:
            return None if matcher.is_accepting() else DEAD_END
        matcher.consume_token(_draw(following, draws))
    return None


def lark_of(ebnf: str) -> tuple[str | None, str | None]:
    """The same grammar in Lark's syntax, or what is wrong with it."""
    try:
        return gbnf_to_lark(ebnf), None
    except Exception as error:  # the converter raises what it comes across
        return None, f"the grammar cannot be read as EBNF: {error}"


def _allowed(matcher: LLMatcher) -> list[int]:
    row = np.zeros(BYTES.words, np.int32)
    matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
    bits: list[int] = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
    return bits


def _draw(following: list[int], draws: random.Random) -> int:
    leading = [token for token in following if token in _STRUCTURE]
    return draws.choice(leading if leading and draws.random() < 0.5 else following)
