"""A model's tokens as the bytes that they stand for: what masks are made over."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llguidance import LLTokenizer, TokenizerWrapper


class _Tokens(TokenizerWrapper):
    """The shape in which llguidance takes tokens; no grammar here asks it to encode text."""

    def __init__(self, tokens: list[bytes], special: list[int], end: int) -> None:
        self.is_tokenizer_wrapper = True
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = end
        self.bos_token_id = None

    def __call__(self, text: str) -> list[int]:
        raise NotImplementedError("grammars are compiled without forced tokens")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a model, shared by all matchers; safe to use from several threads.

    ``size`` is that of the logits: ids behind the tokenizer's last one are never allowed.
    ``ends`` are the tokens that end an answer; ``breaks`` those that are one or two line ends and
    nothing else, with how many they are.
    """

    tokenizer: LLTokenizer
    size: int
    ends: tuple[int, ...]
    breaks: Mapping[int, int]

    @property
    def words(self) -> int:
        """32-bit words of a mask: ceil(size / 32)."""
        return -(-self.size // 32)

    @classmethod
    def of(
        cls,
        tokens: Sequence[bytes],
        special: Collection[int],
        ends: Sequence[int],
        size: int,
        *,
        sliced: bool = True,
    ) -> Vocabulary:
        """A vocabulary of ``tokens`` by id.

        A token without bytes, one of ``special`` and one of ``ends`` stand for no text, whatever
        their bytes are. ``sliced``: masks inside strings are computed once for all grammars, which
        costs time here. Raises ValueError without an end below ``size``.
        """
        known = tuple(end for end in dict.fromkeys(ends) if 0 <= end < size)
        if not known:
            raise ValueError("a vocabulary needs a token that ends an answer")
        padded = [*tokens[:size], *[b""] * (size - len(tokens))]
        hidden = sorted({*known, *(token for token in special if 0 <= token < size)})
        wrapper = _Tokens(padded, hidden, known[0])
        slices: list[str] | None = None if sliced else []
        tokenizer = LLTokenizer(wrapper, eos_token=list(known), slices=slices)
        breaks = {
            token: len(data)
            for token, data in enumerate(padded)
            if data in (b"\n", b"\n\n") and token not in hidden
        }
        return cls(tokenizer, size, known, breaks)


BYTES: Final = Vocabulary.of([bytes([byte]) for byte in range(256)], (), (256,), 257, sliced=False)
"""One token per byte, and one end: what grammars are checked with where no model is at hand."""
