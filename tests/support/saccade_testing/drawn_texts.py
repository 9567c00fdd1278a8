"""Texts as a model with random logits writes them under a grammar, and the vocabularies for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from saccade_server.demo import model_path
from saccade_server.grammars.compiling import Compiler
from saccade_server.grammars.grammar import Grammar, GrammarKind
from saccade_server.grammars.matcher import Matcher
from saccade_server.grammars.vocabulary import Vocabulary
from saccade_server.models.detokenizer import TokenBytes

PATIENCE = 150
"""Tokens after which the model begins to want an end, more with each."""


@dataclass(frozen=True)
class Writer:
    """A model without weights: its tokens, and how much each of them leads to an end."""

    vocabulary: Vocabulary
    tokens: Sequence[bytes]
    closing: NDArray[np.float64]

    @classmethod
    def of(cls, tokens: Sequence[bytes], special: Sequence[int], ends: tuple[int, ...]) -> Writer:
        vocabulary = Vocabulary.of(tokens, special, ends, len(tokens))
        closing = np.array([float(len(token) == 1 and token in b'"]}') for token in tokens])
        closing[list(ends)] = 2.0
        return cls(vocabulary, tokens, closing)

    def matcher(self, source: str) -> Matcher:
        """At the beginning of a text of this grammar."""
        compiler = Compiler(self.vocabulary)
        try:
            return compiler.start(Grammar(GrammarKind.GRAMMAR, source)).result()
        finally:
            compiler.close()

    def allowed(self, matcher: Matcher) -> NDArray[np.int64]:
        """The tokens that may come next."""
        row = np.zeros(self.vocabulary.words, np.int32)
        matcher.fill(row)
        return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))

    def text(self, source: str, seed: int, most: int = 3000) -> bytes | None:
        """A whole text of the grammar; None if it has not ended after ``most`` tokens."""
        draws, matcher, written = np.random.default_rng(seed), self.matcher(source), bytearray()
        for step in range(most):
            allowed = self.allowed(matcher)
            logits = draws.normal(size=len(allowed)) * 2
            logits += self.closing[allowed] * max(0, step - PATIENCE) / 20
            token = int(allowed[np.argmax(logits + draws.gumbel(size=len(allowed)))])
            matcher.accept(token)
            if token in self.vocabulary.ends:
                return bytes(written)
            written += self.tokens[token]
        return None


def accepts(writer: Writer, source: str, text: str) -> bool:
    """Whether the grammar has this text, spelled byte by byte."""
    matcher = writer.matcher(source)
    for byte in text.encode():
        if byte not in writer.allowed(matcher):
            return False
        matcher.accept(byte)
    return matcher.complete


@cache
def byte_writer() -> Writer:
    """One token per byte, and an end."""
    return Writer.of([*(bytes([byte]) for byte in range(256)), b""], (), (256,))


@cache
def demo_writer() -> Writer:
    """The tokens of the demo model: bytes and what they were merged to."""
    tokenizer = Tokenizer.from_file(str(Path(model_path()) / "tokenizer.json"))
    pieces = TokenBytes(tokenizer)
    size = tokenizer.get_vocab_size()
    special = [i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special]
    tokens = [b"" if i in special else pieces.of(i) for i in range(size)]
    return Writer.of(tokens, special, (special[0],))
