"""From text to token ids with character offsets, and which strings are control tokens.

Wraps a fast tokenizer. Ordinary text gets exactly the tokens that the tokenizer itself gives it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from saccade_server.models.sanitize import ControlTokens, Segment

Offsets = list[tuple[int, int]]


class Encoded(NamedTuple):
    """Token ids, and the (start, end) range of characters that each of them covers."""

    ids: list[int]
    offsets: Offsets

    def shifted(self, characters: int) -> Encoded:
        """The same tokens, ``characters`` further back in a longer text."""
        moved = [(start + characters, end + characters) for start, end in self.offsets]
        return Encoded(self.ids, moved)


class TextEncoder:
    """A tokenizer that knows which pieces of a text were typed by a client.

    Threads may share it: every call uses the same settings, which making it has put in place.
    """

    def __init__(self, tokenizer: Any) -> None:
        # One call of it puts the settings in place that it would look at in every call.
        tokenizer("x", add_special_tokens=False, verbose=False)
        self._backend = tokenizer.backend_tokenizer
        self._plain = _without_added_tokens(tokenizer.backend_tokenizer)
        added = tokenizer.added_tokens_decoder
        self._added = frozenset(added)
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        words = {token.content: token.special for token in added.values()}
        visible = {text: special for text, special in words.items() if not text.isspace()}
        self.controls = ControlTokens(
            frozenset(text for text, special in visible.items() if special),
            frozenset(text for text, special in visible.items() if not special),
        )
        normalizes = tokenizer.backend_tokenizer.normalizer is not None
        self._may_fold = normalizes and any(token.normalized for token in added.values())
        # SentencePiece style tokenizers put a space before whatever they are given.
        self._adds_space = self._plain.encode("x", add_special_tokens=False).tokens != ["x"]
        self._before, self._behind = self._frame()

    def encode(self, segments: Sequence[Segment], *, add_special_tokens: bool) -> Encoded:
        """Encode a rendered prompt; offsets count in the segments' texts put together.

        Raises:
            ValueError: a typed control token cannot be encoded as plain text.
        """
        if len(segments) == 1 and not segments[0].typed:
            return self._normal(segments[0].text, add_special_tokens)
        whole = Encoded([], [])
        length = 0
        for segment in segments:
            if segment.typed:
                part = self._typed(segment.text, length > 0)
            else:
                part = self._continued(self._normal, segment.text, length > 0)
            whole.ids.extend(part.ids)
            whole.offsets.extend(part.shifted(length).offsets)
            length += len(segment.text)
        return self._framed(whole) if add_special_tokens else whole

    def token_of(self, text: str) -> int | None:
        """The one token that a text inside a prompt is; None if it is several, or none."""
        found = self.inside(text).ids
        return found[0] if len(found) == 1 else None

    def inside(self, text: str) -> Encoded:
        """``text`` that no client typed, inside a prompt between control tokens."""
        return self._continued(self._normal, text, True) if text else Encoded([], [])

    def behind(self, text: str, *, typed: bool) -> Encoded:
        """``text`` behind a prompt, as if the prompt had ended with a control token.

        Raises:
            ValueError: a typed control token cannot be encoded as plain text.
        """
        return self._typed(text, True) if typed else self.inside(text)

    def hides_controls(self, text: str, *, by_assistant: bool) -> bool:
        """True if normalising ``text``, which has no control tokens, would make some."""
        forbidden = self.special_ids if by_assistant else self._added
        return self._may_fold and not forbidden.isdisjoint(self._normal(text).ids)

    def _normal(self, text: str, add_special_tokens: bool = False) -> Encoded:
        """What the tokenizer makes of ``text``."""
        made = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return Encoded(made.ids, made.offsets)

    def _typed(self, text: str, inside: bool) -> Encoded:
        """``text`` without any control token in it."""
        found = self._continued(self._as_text, text, inside)
        if self._added.isdisjoint(found.ids):
            return found
        if len(text) == 1:
            raise ValueError(f"{text!r} cannot be written in this model's prompts")
        head = self._typed(text[:1], inside)
        tail = self._typed(text[1:], True).shifted(1)
        return Encoded(head.ids + tail.ids, head.offsets + tail.offsets)

    def _as_text(self, text: str) -> Encoded:
        made = self._plain.encode(text, add_special_tokens=False)
        return Encoded(made.ids, made.offsets)

    def _continued(self, encode: Callable[[str], Encoded], text: str, inside: bool) -> Encoded:
        """Encode ``text`` that stands inside a prompt, without a space put before it."""
        if not inside or not self._adds_space:
            return encode(text)
        guard, guarded = encode("\n").ids, encode("\n" + text)
        if guarded.ids[: len(guard)] != guard:
            return encode(text)
        offsets = guarded.offsets[len(guard) :]
        return Encoded(guarded.ids[len(guard) :], offsets).shifted(-1)

    def _frame(self) -> tuple[list[int], list[int]]:
        """Tokens the tokenizer puts before and behind every text."""
        bare, framed = self._normal("x").ids, self._normal("x", True).ids
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return framed[:start], framed[start + len(bare) :]
        return [], []

    def _framed(self, encoded: Encoded) -> Encoded:
        before, behind = self._before, self._behind
        # The tokenizer gives its own additions the range (0, 0), wherever they stand.
        offsets = [(0, 0)] * len(before) + encoded.offsets + [(0, 0)] * len(behind)
        return Encoded(before + encoded.ids + behind, offsets)


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A copy of the tokenizer that treats every string as text."""
    description = json.loads(tokenizer.to_str())
    description.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(description))
