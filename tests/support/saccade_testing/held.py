"""Answers of tiny models that grammars hold: their tokens as bytes, and what may follow, by hand.

A tiny model's token 10 + n stands for the n-th of :data:`TEXTS`; all others stand for no text, and
one of them ends answers.
"""

from collections.abc import Sequence
from functools import cache

import regex as pattern  # type: ignore[import-untyped]
import torch
from msgspec.structs import replace

from saccade_server.engine.request import GenerateRequest
from saccade_server.grammars.expressions import of_regex
from saccade_server.grammars.grammar import Grammar, GrammarKind, Thinking
from saccade_server.grammars.vocabulary import Vocabulary
from saccade_testing import tiny

FIRST = 10
TEXTS = (*'0123456789abcdefghijklmnopqrstuvwxyz.,-"{}:[]', "ab", "12", "345", '": ', "true")
END = 2
"""The token that ends answers of tiny models."""


def text_of(tokens: Sequence[int]) -> str:
    """What tokens stand for."""
    found = (TEXTS[t - FIRST] if 0 <= t - FIRST < len(TEXTS) else "" for t in tokens)
    return "".join(found)


@cache
def vocabulary() -> Vocabulary:
    """Of all tiny models."""
    tokens = [*[b""] * FIRST, *(text.encode() for text in TEXTS)]
    return Vocabulary.of(tokens, (), (END,), tiny.VOCABULARY, sliced=False)


def regex(expression: str, thinking: Thinking | None = None) -> Grammar:
    """A grammar of what an expression matches."""
    return Grammar(GrammarKind.REGEX, of_regex(expression), thinking)


def held(request: GenerateRequest, grammar: Grammar | str) -> GenerateRequest:
    """A request whose answer a grammar holds, or an expression."""
    made = regex(grammar) if isinstance(grammar, str) else grammar
    return replace(request, grammar=made)


def may_follow(expression: str, text: str) -> list[int]:
    """The tokens that may follow ``text`` in what an expression matches, the end behind a whole."""
    found = [
        FIRST + at
        for at, piece in enumerate(TEXTS)
        if pattern.fullmatch(expression, text + piece, partial=True)
    ]
    return [END, *found] if pattern.fullmatch(expression, text) else found


def mask_of(expression: str, answer: Sequence[int]) -> torch.Tensor:
    """What may follow an answer: 0 for such tokens and -inf for others, float64 [vocabulary]."""
    mask = torch.full((tiny.VOCABULARY,), -torch.inf, dtype=torch.float64)
    mask[may_follow(expression, text_of(answer))] = 0
    return mask
